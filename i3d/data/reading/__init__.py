"""Videos and shards -> pixels, decoded in worker processes."""
