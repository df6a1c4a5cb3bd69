"""Steps as Jobs."""
