"""What was asked: the experiment file."""
