"""The commands' actions, without a terminal."""
