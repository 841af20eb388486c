"""System tags of zones."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

RESERVED_CPU = system_tag("host::reservedCpu::{capacity}", resource="ZoneVO")
RESERVED_MEMORY = system_tag("host::reservedMemory::{capacity}", resource="ZoneVO")
