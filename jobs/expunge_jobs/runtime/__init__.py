"""The runtime of a step: its inputs, its reports and its end."""
