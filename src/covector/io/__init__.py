"""The edge of the library: files, the hub, and nothing that computes."""
