"""System tags of hosts of any hypervisor."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

RESERVED_CPU = system_tag("reservedCpu::{capacity}", resource="HostVO")
RESERVED_MEMORY = system_tag("reservedMemory::{capacity}", resource="HostVO")
OS_DISTRIBUTION = system_tag("os::distribution::{distribution}", resource="HostVO", inherent=True)
OS_RELEASE = system_tag("os::release::{release}", resource="HostVO", inherent=True)
OS_VERSION = system_tag("os::version::{version}", resource="HostVO", inherent=True)
EXTRA_IPS = system_tag("extraips::{extraips}", resource="HostVO", inherent=True)
CPU_MODEL = system_tag("hostCpuModelName::{hostCpuModelName}", resource="HostVO", inherent=True)
CPU_GHZ = system_tag("cpuGHz::{cpuGHz}", resource="HostVO", inherent=True)
CPU_PROCESSOR_NUM = system_tag("cpuProcessorNum::{cpuProcessorNum}", resource="HostVO", inherent=True)
"""Sockets."""
CONNECTED_TIME = system_tag("ConnectedTime::{hostConnectedTime}", resource="HostVO", inherent=True)
"""When the host was last connected, in seconds since 1970."""
