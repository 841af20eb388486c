"""Consoles: who may look at a VM's screen and type on its serial line."""
