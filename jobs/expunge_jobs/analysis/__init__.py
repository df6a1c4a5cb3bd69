"""Statistics that need numpy: made once, where an experiment ends."""
