"""The training loop that all fine-tunes share."""
