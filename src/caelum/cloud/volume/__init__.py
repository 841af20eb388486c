"""Volumes: root and data disks, from record to bits and back."""
