"""The planning of an experiment: experiment -> steps."""
