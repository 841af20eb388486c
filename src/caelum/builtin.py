"""What ships with Caelum: services and drivers as "module:Class" strings, loaded lazily in this order.

Separate packages register by the entry points `caelum.services`, `caelum.drivers` and `caelum.plugins` instead. A
module that is missing or broken is reported at start and skipped; the rest starts.
"""

from __future__ import annotations

SERVICES: list[str] = []
"""Services, each `"caelum.cloud.<name>.service:<Class>"`; the class takes the node."""

DRIVERS: list[str] = []
"""Drivers and plugins, each `"caelum.drivers.<name>.driver:<Class>"`; the class takes the node and adds itself."""
