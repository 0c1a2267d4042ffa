"""Complete datasets, and all that can be done with them without their sources."""
