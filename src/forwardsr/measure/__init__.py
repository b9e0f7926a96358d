"""Pure functions of a generator and a source that return small typed results."""
