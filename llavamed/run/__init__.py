"""The driver: what is finished, what runs next, and who is told."""
