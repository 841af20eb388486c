"""System tags of KVM hosts, written at each connect."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

QEMU_IMG_VERSION = system_tag("qemu-img::version::{version}", resource="HostVO", inherent=True)
LIBVIRT_VERSION = system_tag("libvirt::version::{version}", resource="HostVO", inherent=True)
CPU_MODEL_NAME = system_tag("cpuModelName::{name}", resource="HostVO", inherent=True)
HVM_CPU_FLAG = system_tag("hvm::{flag}", resource="HostVO", inherent=True)
"""vmx or svm where hardware acceleration truly works; "none" where guests are emulated."""
CHECK_CLUSTER_CPU_MODEL = system_tag("check::cluster::cpu::model::{enable}", resource="ClusterVO")
