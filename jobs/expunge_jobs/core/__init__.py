"""What every room of the jobs package may use: errors, types, connections."""
