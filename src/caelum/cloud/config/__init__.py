"""Settings seen from outside: global values and the overrides of single resources."""
