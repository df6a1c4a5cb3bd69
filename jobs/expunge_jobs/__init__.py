"""The job programs that run inside the container, one per kind of step.

This package never imports the controller.
"""
