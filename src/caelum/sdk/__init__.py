"""The Python client, generated from the message declarations."""
