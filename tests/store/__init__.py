"""A directory and a real S3 server."""
