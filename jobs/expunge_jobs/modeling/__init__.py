"""Models, adapters and tokens: torch, no storage."""
