"""The experiment file: the user's request."""
