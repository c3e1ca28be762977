"""Datasets on disk and the shards they become."""
