"""The cluster's program."""
