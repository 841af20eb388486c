"""Tags: text that users (user tags) and drivers (system tags) put on resources."""
