"""The durable workflows of VMs, one module per kind of operation."""
