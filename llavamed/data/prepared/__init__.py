"""Complete datasets, and everything that can be done with them without their sources."""
