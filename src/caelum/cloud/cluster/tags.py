"""System tags of clusters."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

RESERVED_CPU = system_tag("host::reservedCpu::{capacity}", resource="ClusterVO")
RESERVED_MEMORY = system_tag("host::reservedMemory::{capacity}", resource="ClusterVO")
CHECK_CPU_MODEL = system_tag("check::cluster::cpu::model::{enable}", resource="ClusterVO")
