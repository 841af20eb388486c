"""Zones: the largest division of a data centre; everything else lives in one."""
