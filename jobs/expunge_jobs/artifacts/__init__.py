"""What was made, and how it is kept."""
