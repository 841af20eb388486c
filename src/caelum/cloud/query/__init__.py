"""The query service: every query of every resource type, by one compiler."""
