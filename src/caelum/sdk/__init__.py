"""The Python client, generated from the message declarations."""

from caelum.sdk.client import ApiError, Client

__all__ = ["ApiError", "Client"]
