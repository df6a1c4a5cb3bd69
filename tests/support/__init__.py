"""What levels share: servers, a control plane, nodes, programs that are built."""
