"""HTTP to a cloud of several addresses: the next is tried when one does not answer.

Invariant: a request is repeated only where that is safe: when it cannot have arrived, when it changes nothing, or when
it carries the UUID of its job, so that a repetition is recognised. Whoever gets an answer gets the cloud's only one.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from caelum.sdk.errors import ApiError

HTTP_TIMEOUT = 60.0
"""Seconds for one HTTP exchange."""
BRIEF_TIMEOUT = 10.0
"""The same where an answer comes at once and another address may be asked instead."""
NOT_READY = "SYS.1010"
LEAVING = ("SYS.1011", "SYS.1012")
"""A node that starts or ends has done nothing; one whose peer just died may have."""
AWAY = ("CAELUM.DB.1000", "CAELUM.DB.1001", "CAELUM.NODE.1000", "CAELUM.1010")
"""The node does not reach database or broker, or is no longer part of the cloud: it did nothing, or nobody knows."""
DUPLICATE = "Duplicate job uuid"
_NEVER_ARRIVED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


@dataclass(frozen=True)
class Ask:
    """A request. `job` is the UUID that its job shall have; `safe`: it may be repeated though it may have arrived."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    job: str | None = None
    safe: bool = False
    poll: bool = False
    """The answer is a job's, so an error in it is final."""
    patience: float = HTTP_TIMEOUT
    """Seconds for the exchange with one address."""

    @property
    def brief(self) -> bool:
        """Whether the answer comes at once."""
        return self.poll or self.job is not None


class Transport:
    """Sends requests to whichever address answers, first to the one that answered last."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self._first = 0

    def send(self, ask: Ask) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer. Raises ApiError, or OSError when no address answers."""
        failure: Exception | None = None
        may_have_arrived = False
        for index in self._order():
            try:
                answer = self._exchange(self.addresses[index], ask)
            except ApiError as error:
                if may_have_arrived and ask.job is not None and DUPLICATE in str(error.error.get("details")):
                    self._first = index
                    return 202, {"location": f"{self.addresses[index]}/zstack/v1/api-jobs/{ask.job}"}
                if not _elsewhere(ask, error.code):
                    raise
                may_have_arrived = may_have_arrived or error.code in AWAY
                failure = error
            except (OSError, http.client.HTTPException) as error:
                if not never_arrived(error):
                    may_have_arrived = True
                    if not (ask.safe or ask.job is not None):
                        raise
                failure = error
            else:
                self._first = index
                return answer
        if isinstance(failure, http.client.HTTPException):
            raise ConnectionError(f"the answer broke off: {failure!r}") from failure
        raise failure or OSError("no address is known")

    def _order(self) -> Iterator[int]:
        first = self._first
        return (number % len(self.addresses) for number in range(first, first + len(self.addresses)))

    def _exchange(self, address: str, ask: Ask) -> tuple[int, dict[str, Any]]:
        headers = {**ask.headers, "Content-Type": "application/json"}
        if ask.job is not None:
            headers["X-Job-UUID"] = ask.job
        request = urllib.request.Request(address + ask.path, ask.body, headers, method=ask.method)  # noqa: S310
        brief = ask.brief and len(self.addresses) > 1
        try:
            with urllib.request.urlopen(request, timeout=BRIEF_TIMEOUT if brief else ask.patience) as response:  # noqa: S310
                if ask.poll and response.status == 202 and "Retry-After" in response.headers:
                    raise ApiError(
                        {"code": NOT_READY, "details": "this node does not know now what becomes of the job"}
                    )
                return response.status, json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise _api_error(error.code, error.read().decode(errors="replace") or error.reason) from None


def never_arrived(error: BaseException) -> bool:
    """Whether a connection that failed so cannot have carried the request."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in _NEVER_ARRIVED


def _elsewhere(ask: Ask, code: str) -> bool:
    """Whether another node may do what this one refused."""
    if code in AWAY:
        return not ask.poll and (ask.safe or ask.job is not None)
    return code in (NOT_READY, "HTTP.503") or (ask.safe and not ask.poll and code in LEAVING)


def _api_error(status: int, text: str) -> ApiError:
    try:
        return ApiError(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return ApiError({"code": f"HTTP.{status}", "details": text})
