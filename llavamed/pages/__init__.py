"""The base page of every HTML page."""
