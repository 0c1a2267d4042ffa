"""Decide what a worker trains on next: order, packing, batches. This needs no Ray."""
