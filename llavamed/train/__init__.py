"""From prepared data and a config to exported weights: curriculum, driver, worker, engine."""
