"""What a worker trains on next: order, packing, batches. Needs no Ray."""
