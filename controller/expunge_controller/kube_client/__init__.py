"""A client for the Kubernetes API, without knowledge of Experiments."""
