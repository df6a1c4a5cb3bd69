"""Pods of a real node."""
