"""Test tools that plugin writers need too: the embedded cloud, the crash harness, rehearsals."""
