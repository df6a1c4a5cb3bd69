"""torch and tiny models."""
