"""What a step does, a kind each; each reads from top to bottom."""
