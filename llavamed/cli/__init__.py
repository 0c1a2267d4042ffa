"""The `llavamed` command: a file a command group; heavy imports stay inside the commands."""
