"""Errors, types and connections that every package here may use."""
