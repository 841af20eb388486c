"""A client of several addresses: what it repeats elsewhere, and what it must not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from caelum.sdk import client as sdk
from caelum.sdk.client import ApiError, Client
from caelum.sdk.transport import Ask, Transport

Answer = tuple[int, str] | None
"""A status with a body; None: the connection breaks."""


UNKNOWN: Answer = (202, "")


class Address:
    """A server that answers as it is told and keeps what it was asked."""

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        address = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                address.asked.append((self.command, self.path, self.headers.get("X-Job-UUID")))
                given = answer(self.command, self.path)
                if given is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(given[0])
                if given == UNKNOWN:
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Length", str(len(given[1])))
                self.end_headers()
                self.wfile.write(given[1].encode())

            do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815 - the base class's names

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def address(answer: Callable[[str, str], Answer]) -> Iterator[Address]:
    made = Address(answer)
    threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


def refusing() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def error(code: str) -> str:
    return json.dumps({"error": {"code": code, "details": "it is so"}})


ZONES = json.dumps({"inventories": [{"uuid": "1"}]})
ZONE = json.dumps({"inventory": {"uuid": "1"}})


def breaks(method: str, path: str) -> Answer:
    return None


def zones(method: str, path: str) -> Answer:
    return 200, ZONES


@pytest.mark.parametrize(
    "first",
    [
        breaks,
        lambda *_: (503, "overloaded"),
        *(lambda *_, code=code: (503, error(code)) for code in ("SYS.1010", "SYS.1011", "CAELUM.DB.1000")),
    ],
)
def test_a_question_is_asked_elsewhere_and_the_next_one_there_at_once(first: Callable[[str, str], Answer]) -> None:
    with address(first) as bad, address(zones) as good:
        client = Client(refusing(), bad.url, good.url)
        assert client.query("Zone") == [{"uuid": "1"}]
        assert client.query("Zone") == [{"uuid": "1"}]
        assert (len(bad.asked), len(good.asked)) == (1, 2)


@pytest.mark.parametrize("first", [breaks, lambda *_: (503, error("CAELUM.DB.1000"))])
def test_a_creation_whose_answer_was_lost_is_recognised_and_its_job_polled_at_any_address(
    first: Callable[[str, str], Answer],
) -> None:
    def second(method: str, path: str) -> Answer:
        if method == "POST":
            return 400, "Duplicate job uuid[...]"
        return 200, ZONE

    with address(first) as bad, address(second) as good:
        assert Client(bad.url, good.url).call("CreateZone", name="z") == {"uuid": "1"}
        job = bad.asked[0][2]
        assert job is not None
        assert [(one[0], one[2]) for one in good.asked] == [("POST", job), ("GET", None)]
        assert good.asked[1][1].endswith(f"/api-jobs/{job}")


def test_a_job_outlives_the_node_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    polls: list[str] = []

    def first(method: str, path: str) -> Answer:
        if method == "POST":
            return 202, json.dumps({"location": "http://elsewhere/zstack/v1/api-jobs/7"})
        return None

    def second(method: str, path: str) -> Answer:
        polls.append(path)
        return [(503, error("SYS.1010")), UNKNOWN, (202, "{}"), (200, ZONE)][len(polls) - 1]

    with address(first) as one, address(second) as other:
        assert Client(one.url, other.url).call("CreateZone", name="z") == {"uuid": "1"}
        monkeypatch.setattr(sdk, "POLL_PATIENCE", 0.1)
        polls.clear()
        other.server.shutdown()
        other.server.server_close()
        with pytest.raises(OSError, match=r"."):
            Client(one.url, other.url).call("CreateZone", name="z")


def test_what_may_have_been_done_and_has_no_job_is_not_repeated() -> None:
    ask = Ask("PUT", "/zstack/v1/somewhere", b"{}")
    with address(breaks) as bad, address(zones) as good:
        with pytest.raises(OSError, match=r"."):
            Transport([bad.url, good.url]).send(ask)
        assert good.asked == []
        assert Transport([refusing(), good.url]).send(ask) == (200, json.loads(ZONES))


def test_a_refusal_is_the_answer() -> None:
    with address(lambda *_: (503, error("SYS.1006"))) as first, address(zones) as second:
        with pytest.raises(ApiError, match="it is so"):
            Client(first.url, second.url).query("Zone")
        assert second.asked == []
