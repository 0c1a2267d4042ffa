"""Rules that turn a prediction into a score, a file each; all of them pure."""
