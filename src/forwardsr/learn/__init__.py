"""Ways to fit a generator to a source."""
