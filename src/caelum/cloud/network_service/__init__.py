"""Network services: which provider serves DHCP, DNS, SNAT ... on which L3 network."""
