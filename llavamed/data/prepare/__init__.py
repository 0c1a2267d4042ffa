"""Turn a source into a prepared dataset: one chunk, one shard, and the Ray Data job."""
