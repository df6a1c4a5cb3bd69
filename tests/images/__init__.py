"""The images as they are shipped."""
