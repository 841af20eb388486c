"""Drivers: vendor and technology specific halves of services, each removable."""
