"""Replication: published lists of singular directions beside ours, and the findings of a sprint asked again."""
