"""What all tests share."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings
from tests.repeatable import watch

watch()

# How quick examples come says more of what else the machine does than of the tests.
settings.register_profile("caelum", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("caelum")


def pytest_sessionstart(session: pytest.Session) -> None:
    """No garbage is collected while test modules are parsed.

    A finalizer that parses source itself (the traceback of a warning) in the middle of it makes CPython 3.11 fail
    with "AST constructor recursion depth mismatch".
    """
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect again from the first test on."""
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """And not while plugins load what they need for the end: greenlets of nodes that were killed are garbage too."""
    gc.collect()
    gc.disable()
