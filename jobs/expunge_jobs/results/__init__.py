"""From scores to sentences: reads only."""
