"""What runs inside the container: one job program for each kind of step. Never imports the controller."""
