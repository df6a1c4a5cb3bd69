"""A real Kubernetes control plane."""
