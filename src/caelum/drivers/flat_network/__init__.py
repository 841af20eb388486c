"""The Flat network service provider: DHCP, DNS, metadata and SNAT on the host that the VM runs on."""
