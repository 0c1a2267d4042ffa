"""Estimate the cost of a stage: floating-point operations, memory and padding."""
