"""System tags of L2 networks."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

BRIDGE_NAME = system_tag("kvm::bridge::{name}", resource="L2NetworkVO", inherent=True)
"""The network's bridge on hosts, fixed when the network is made."""
