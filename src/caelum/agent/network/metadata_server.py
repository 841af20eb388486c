"""The metadata service of one L3 network, as a process of its own: `metadata_server.py <folder> <pid file>`.

Invariant: who asks is known by the source address alone, which anti-spoofing makes trustworthy, and nobody is told what
another guest's file holds. Standard library only: it runs without the rest of the package. No guest can hold it up:
requests are small, time-limited, and few at a time per guest.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

ADDRESS = ("169.254.169.254", 80)
TIMEOUT = 5.0
"""Seconds that a guest has for a request."""
MAX_HEAD = 8192
"""Bytes of a request that are read."""
MAX_PER_GUEST = 8
"""Requests of one guest at a time."""
VERSIONS = ("1.0", "2009-04-04", "latest")


def tree(entry: dict[str, Any]) -> dict[str, str]:
    """Everything that a guest may ask for, by path."""
    keys, hostname = entry.get("sshKeys", []), entry["hostname"]
    found = {
        "instance-id": entry["vmUuid"], "hostname": hostname, "local-hostname": hostname, "local-ipv4": entry["ip"],
        "ami-id": entry["vmUuid"], "instance-type": "caelum",
    }  # fmt: skip
    for number, key in enumerate(keys):
        found[f"public-keys/{number}/openssh-key"] = key
    paths = {f"{version}/meta-data/{name}": text for version in VERSIONS for name, text in found.items()}
    if keys:  # EC2 lists keys as "<number>=<name>", unlike every other directory
        listing = "\n".join(f"{number}=key-{number}" for number in range(len(keys)))
        paths.update({f"{version}/meta-data/public-keys": listing for version in VERSIONS})
    return {**paths, **_user_data(entry), **_no_cloud(entry), **_open_stack(entry)}


def _user_data(entry: dict[str, Any]) -> dict[str, str]:
    text = entry.get("userData")
    return {} if text is None else {f"{version}/user-data": text for version in VERSIONS}


def _no_cloud(entry: dict[str, Any]) -> dict[str, str]:
    """cloud-init's NoCloud files; JSON is YAML, and user-data must exist even when there is none."""
    facts = {
        "instance-id": entry["vmUuid"],
        "local-hostname": entry["hostname"],
        "public-keys": entry.get("sshKeys", []),
    }
    return {"meta-data": json.dumps(facts), "user-data": entry.get("userData") or "", "vendor-data": ""}


def _open_stack(entry: dict[str, Any]) -> dict[str, str]:
    keys = {f"key-{number}": key for number, key in enumerate(entry.get("sshKeys", []))}
    facts = {"uuid": entry["vmUuid"], "hostname": entry["hostname"], "name": entry["hostname"], "public_keys": keys}
    found = {"openstack/latest/meta_data.json": json.dumps(facts), "openstack/latest/network_data.json": "{}"}
    if entry.get("userData") is not None:
        found["openstack/latest/user_data"] = entry["userData"]
    return found


def answer(entry: dict[str, Any], path: str) -> str | None:
    """The text at a path: a value, or a directory's listing; None when there is nothing."""
    paths, wanted = tree(entry), path.strip("/")
    if wanted in paths:
        return paths[wanted]
    if wanted == "":
        return "\n".join(VERSIONS)
    start = wanted + "/"
    children = {one[len(start) :].partition("/")[::2] for one in paths if one.startswith(start)}
    names = {name + ("/" if rest else "") for name, rest in children}
    # A path that is a value and a directory at once (public-keys) is listed as a directory.
    return "\n".join(sorted(name for name in names if name + "/" not in names)) if names else None


class Handler(socketserver.BaseRequestHandler):
    """One request, one answer, end of the connection."""

    server: Server

    def handle(self) -> None:
        """Answer GET and HEAD."""
        self.request.settimeout(TIMEOUT)
        try:
            line = self._read_head()
            self.request.sendall(self._respond(line))
        except OSError:
            pass  # the guest went away, or took too long

    def _read_head(self) -> str:
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MAX_HEAD:
            part = self.request.recv(MAX_HEAD - len(head))
            if not part:
                break
            head += part
        return head.split(b"\n", 1)[0].decode("latin-1").strip()

    def _respond(self, line: str) -> bytes:
        words = line.split(" ")
        if len(words) not in (2, 3):
            return response(400, "")
        if words[0] not in ("GET", "HEAD"):
            return response(405, "")
        entry = self.server.entry(self.client_address[0])
        text = answer(entry, words[1].partition("?")[0]) if entry is not None else None
        return response(404 if text is None else 200, text or "", head_only=words[0] == "HEAD")


def response(status: int, text: str, *, head_only: bool = False) -> bytes:
    """An HTTP response."""
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}[status]
    body = text.encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Server: caelum\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)


class Server(socketserver.ThreadingTCPServer):
    """One thread per request, with a bound per guest."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        self.folder = folder
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    def entry(self, ip: str) -> dict[str, Any] | None:
        """What the guest at this address may know."""
        try:
            content: dict[str, Any] = json.loads((self.folder / f"{ip}.json").read_bytes())
        except FileNotFoundError:
            return None
        return content

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Refuse a guest that has too many requests open."""
        with self._lock:
            if self._busy[client_address[0]] >= MAX_PER_GUEST:
                return False
            self._busy[client_address[0]] += 1
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Count the guest's requests while they run."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._busy[client_address[0]] -= 1
                self._busy += Counter()  # forgets those at zero

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A request that fails ends with its connection; nobody reads a log here."""


def daemonize(pid_file: Path) -> None:
    """Go on as a process that belongs to nobody; the first one ends when the pid file is written."""
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.setsid()
    server = os.fork()
    if server:
        pid_file.write_text(str(server))
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)


def main() -> None:
    """Bind, leave the terminal, serve."""
    folder, pid_file = Path(sys.argv[1]), Path(sys.argv[2])
    threading.stack_size(256 * 1024)
    with Server(ADDRESS, folder) as server:
        daemonize(pid_file)
        server.serve_forever(poll_interval=3600)


if __name__ == "__main__":
    main()
