"""Hosts: their life, their connection, and the operations that run on them, whatever their hypervisor."""
