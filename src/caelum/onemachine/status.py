"""`make status`: what runs of the one-machine cloud."""

from __future__ import annotations

from caelum.onemachine.access import NoAccessError, log_in
from caelum.onemachine.layout import Layout
from caelum.onemachine.processes import alive, pid_in
from caelum.sdk import ApiError


def main() -> None:
    """Print processes, host and VMs."""
    layout = Layout.from_environment()
    for name in ("supervisor", "libvirtd", "server", "agent"):
        file = layout.run / f"{name}.pid"
        print(f"{name:12} {f'runs, pid {pid_in(file)}' if alive(file) else 'does not run'}")
    if not alive(layout.run / "server.pid"):
        return
    try:
        client = log_in(layout.api)
        for host in client.query("Host"):
            print(f"{'host':12} {host['name']}: {host['state']}, {host['status']}")
        for vm in client.query("VmInstance"):
            addresses = ", ".join(nic.get("ip", "no address") for nic in vm["vmNics"])
            print(f"{'vm':12} {vm['name']}: {vm['state']}, {addresses}")
    except (ApiError, NoAccessError, OSError) as error:
        print(f"More is not known: {error}")


if __name__ == "__main__":
    main()
