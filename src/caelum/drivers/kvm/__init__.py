"""The KVM hypervisor: hosts that run the host agent."""
