"""Drive a run: find what is finished, run what is next, and record it."""
