"""Clusters of management nodes on one machine, for tests, rehearsals and demonstrations."""
