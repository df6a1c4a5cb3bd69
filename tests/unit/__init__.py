"""Before nothing: no torch, no server."""
