"""Everything that happens to a sample: source, preparation, prepared dataset, order, batches."""
