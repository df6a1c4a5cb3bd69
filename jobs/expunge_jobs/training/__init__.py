"""The loop that fine-tunes share."""
