"""Caelum: one software that runs a data centre's compute, storage and network through APIs."""

__version__ = "0.1.0"
