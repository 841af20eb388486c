"""Private instances of what several nodes share, for tests and for a cluster on one machine."""
