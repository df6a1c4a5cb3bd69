"""Models, adapters and tokens, with torch and without storage."""
