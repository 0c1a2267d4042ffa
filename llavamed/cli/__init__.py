"""The `llavamed` command: one file per command group; heavy imports stay inside the commands."""
