"""Execution of steps as Kubernetes Jobs."""
