"""Requests that are signed with an access key instead of carrying a session.

    Authorization: ZStack <AccessKeyID>:<Base64(HMAC-SHA1(secret, "METHOD\\nDATE\\n/v1<path>"))>
    Date: Sun, 22 Nov 2026 19:22:02 UTC

Invariant: a signature is good for one method and path, and for at most `MOST_SKEW` around the one moment that its date
means; a zone that is not known is refused, never guessed. An abbreviation of several zones is this server's own if it
has it, else the one of the table below, as in the original. Refusals are the original's plain texts.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from caelum.cloud.identity.messages import CheckSignature
from caelum.gateway.refusal import Refusal
from caelum.kernel.database import utcnow

SCHEME = "ZStack"
MOST_SKEW = timedelta(minutes=15)
_DATE = re.compile(r"(?:[A-Z][a-z]{2}, )?(\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) (\S+)")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_OFFSET = re.compile(r"(?:GMT|UTC)?([+-])(\d{1,2}):?(\d{2})?")
_ABBREVIATIONS = {
    "UTC": 0, "GMT": 0, "Z": 0, "WET": 0, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "MSK": 3, "PKT": 5,
    "IST": 5.5, "MMT": 6.5, "ICT": 7, "WIB": 7, "HKT": 8, "SGT": 8, "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11,
    "NZST": 12, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
}  # fmt: skip
"""Hours east of Greenwich. CST is America's, as where no server's zone says that it is China's."""


class Signed(msgspec.Struct, frozen=True):
    """What a request's headers say."""

    access_key_id: str
    signature: str
    date: str

    def check(self, method: str, path: str) -> CheckSignature:
        """The question whether it was signed for this; `path` follows the API's prefix, as it was sent."""
        paths = dict.fromkeys((path, unquote(path)))
        texts = [f"{method}\n{self.date}\n/v1{one}" for one in paths]
        return CheckSignature(access_key_id=self.access_key_id, signature=self.signature, texts=texts)


def signed(request: web.BaseRequest) -> Signed | None:
    """The signature that a request carries, None when it carries none; one whose date is bad is refused."""
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme != SCHEME:
        return None
    key, colon, signature = rest.strip().partition(":")
    if not (key and colon and signature):
        raise Refusal(400, "Authorization must be 'ZStack <AccessKeyID>:<signature>'")
    date = request.headers.get("Date")
    if date is None:
        raise Refusal(400, "missing header 'Date'")
    if abs(moment(date) - utcnow()) > MOST_SKEW:
        raise Refusal(403, "requestTimeTooSkewed")
    return Signed(key, signature, date)


def moment(date: str) -> datetime:
    """What the date of a request means, in UTC."""
    found = _DATE.fullmatch(date.strip())
    if found is None or found[2] not in _MONTHS:
        raise _bad(date)
    day, year, hour, minute, second = (int(found[one]) for one in (1, 3, 4, 5, 6))
    try:
        local = datetime(year, _MONTHS.index(found[2]) + 1, day, hour, minute, second)
        return local - _offset(found[7], local)
    except (ValueError, OverflowError):
        raise _bad(date) from None


def _offset(zone: str, local: datetime) -> timedelta:
    """How far a zone is ahead of UTC at a local time. Raises ValueError for one that is not known."""
    if zone in time.tzname:
        return timedelta(seconds=-(time.timezone, time.altzone)[time.tzname.index(zone)])
    if zone in _ABBREVIATIONS:
        return timedelta(hours=_ABBREVIATIONS[zone])
    if found := _OFFSET.fullmatch(zone):
        size = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        return timezone(-size if found[1] == "-" else size).utcoffset(None)
    return _zone(zone).utcoffset(local) or timedelta()


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError):
        raise ValueError(name) from None


def _bad(date: str) -> Refusal:
    return Refusal(400, f"the header Date is not like 'Sun, 22 Nov 2026 19:22:02 UTC': {date[:64]}")
