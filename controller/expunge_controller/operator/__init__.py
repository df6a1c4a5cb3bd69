"""The operator, which runs the Experiments of a cluster."""
