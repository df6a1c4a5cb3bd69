"""What is to be done, as data."""
