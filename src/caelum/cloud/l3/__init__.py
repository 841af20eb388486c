"""L3 networks: subnets on an L2 network, their address ranges, and the addresses in use."""
