"""The way of a sample: source, conversation and images, prepared shards, order, batches."""
