"""Rules that turn a prediction into a score: pure functions, one file per scorer."""
