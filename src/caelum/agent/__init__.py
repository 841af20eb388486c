"""The agent that runs on each hypervisor host."""
