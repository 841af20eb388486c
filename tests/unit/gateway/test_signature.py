"""Dates of signed requests: every form that clients send, and nothing that could mean anything."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from caelum.cloud.identity.access_keys import sign
from caelum.gateway.refusal import Refusal
from caelum.gateway.signature import Signed, moment

NOON = datetime(2026, 11, 22, 12)


@pytest.mark.parametrize(
    "date",
    [
        "Sun, 22 Nov 2026 12:00:00 UTC",
        "Sun, 22 Nov 2026 12:00:00 GMT",
        "Sun, 22 Nov 2026 12:00:00 Etc/UTC",
        "22 Nov 2026 12:00:00 Z",
        "Sun, 22 Nov 2026 20:00:00 Asia/Shanghai",
        "Sun, 22 Nov 2026 18:30:00 MMT",
        "Sun, 22 Nov 2026 19:00:00 ICT",
        "Sun, 22 Nov 2026 17:30:00 +0530",
        "Sun, 22 Nov 2026 08:30:00 GMT-03:30",
        "Sun, 22 Nov 2026 19:00:00 +07",
    ],
)
def test_dates_that_clients_send(date: str) -> None:
    assert moment(date) == NOON


@pytest.fixture
def server_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "date"),
    [
        ("UTC", "Sun, 22 Nov 2026 06:00:00 CST"),
        ("America/Chicago", "Sun, 22 Nov 2026 06:00:00 CST"),
        ("Asia/Shanghai", "Sun, 22 Nov 2026 20:00:00 CST"),
        ("Asia/Jerusalem", "Sun, 22 Nov 2026 14:00:00 IST"),
        ("Europe/Berlin", "Sun, 22 Nov 2026 14:00:00 CEST"),
    ],
)
def test_an_abbreviation_of_several_zones_means_one(server_in: Callable[[str], None], zone: str, date: str) -> None:
    server_in(zone)
    assert moment(date) == NOON


@pytest.mark.parametrize(
    "date",
    [
        "",
        "now",
        "2026-11-22T12:00:00Z",
        "Sun, 22 Nov 2026 12:00:00",
        "Sun, 31 Feb 2026 12:00:00 UTC",
        "Sun, 22 Foo 2026 12:00:00 UTC",
        "Sun, 22 Nov 2026 25:00:00 UTC",
        "Sun, 22 Nov 2026 12:00:00 XYZ",
        "Sun, 22 Nov 2026 12:00:00 ../../etc/passwd",
        "Mon, 01 Jan 0001 00:00:00 +1400",
    ],
)
def test_what_is_no_date_is_refused(date: str) -> None:
    with pytest.raises(Refusal) as refused:
        moment(date)
    assert refused.value.status == 400


def test_the_signature_is_the_clients() -> None:
    """The second case of RFC 2202, and the text that is signed."""
    digest = b64decode(sign("Jefe", "what do ya want for nothing?"))
    assert digest.hex() == "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
    question = Signed("id", "x", "D").check("GET", "/zones/a%20b")
    assert question.texts == ["GET\nD\n/v1/zones/a%20b", "GET\nD\n/v1/zones/a b"]
