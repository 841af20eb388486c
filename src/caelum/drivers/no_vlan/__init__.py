"""L2 networks without VLAN: a Linux bridge on a physical interface, or a private bridge."""
