"""Train a stage on one worker, from prepared data and a config to exported weights."""
