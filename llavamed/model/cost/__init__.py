"""What a model costs: floating-point operations and memory."""
