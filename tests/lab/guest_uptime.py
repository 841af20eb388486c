"""Ask a guest by its agent how long it runs: `guest_uptime.py LIBVIRT_URI VM_UUID` prints seconds."""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import libvirt
import libvirt_qemu


def ask(domain: Any, command: str, **arguments: Any) -> Any:
    """One command to the guest's agent."""
    words, end = json.dumps({"execute": command, "arguments": arguments}), time.monotonic() + 40
    while True:
        try:
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, words, 20, 0))["return"]
        except libvirt.libvirtError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)  # the guest still boots


def main() -> None:
    """Read /proc/uptime inside the guest."""
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what is tried again
    domain = libvirt.open(sys.argv[1]).lookupByName(sys.argv[2])
    # "arg" is a list of words; the agent answers when the program has ended.
    pid = ask(domain, "guest-exec", **{"path": "/bin/cat", "arg": ["/proc/uptime"], "capture-output": True})["pid"]
    while not (status := ask(domain, "guest-exec-status", pid=pid))["exited"]:
        time.sleep(0.1)
    print(base64.b64decode(status["out-data"]).split()[0].decode())


if __name__ == "__main__":
    main()
