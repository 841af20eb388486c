"""Clusters: hosts of one hypervisor type that share networks and storage."""
