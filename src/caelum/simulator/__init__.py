"""A simulated host agent that speaks the real protocol without doing the work."""
