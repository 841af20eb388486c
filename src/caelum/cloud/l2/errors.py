"""Errors of L2 networks."""

from __future__ import annotations

from caelum.kernel.errors import error_type

ATTACH_ERROR = error_type(
    "L2.1000",
    "Unable to attach L2Network to a cluster",
    "Read the cause: a host lacks the interface, or another network of the cluster uses it.",
)
