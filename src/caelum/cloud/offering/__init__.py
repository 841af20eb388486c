"""Offerings: the sizes that virtual machines and disks are sold in."""
