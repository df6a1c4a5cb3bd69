"""Experiment -> steps."""
