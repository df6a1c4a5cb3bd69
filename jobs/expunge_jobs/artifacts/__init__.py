"""Artifacts: attempts, manifests, damage and the shared cache."""
