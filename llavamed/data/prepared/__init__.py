"""A complete dataset and what can be done with it without its source."""
