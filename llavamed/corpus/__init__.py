"""Where training data is made: from open literature to what `data/sources` reads."""
