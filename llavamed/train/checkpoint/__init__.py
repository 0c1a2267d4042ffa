"""Save, verify, keep and restore checkpoints."""
