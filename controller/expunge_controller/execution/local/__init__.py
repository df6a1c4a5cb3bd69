"""Execution of steps as processes of this machine."""
