"""Whole runs of the command."""
