"""The base page that every HTML page of ours is built on."""
