"""Execution of a plan's steps."""
