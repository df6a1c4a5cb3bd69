"""The job programs, one for each kind of step.

Each program reads from top to bottom.
"""
