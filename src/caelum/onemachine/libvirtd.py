"""A libvirt daemon of our own, beside whatever the machine has: its own configuration, sockets, state and domains.

The daemon runs in a mount namespace in which /etc/libvirt, /var/lib/libvirt, /var/log/libvirt, /var/cache/libvirt and
/run are directories below the cloud's home. The machine's own libvirt, if any, never sees our domains, and we
never see its. Where KVM does not truly work, /dev/kvm is hidden, so that libvirt does not probe it for a minute at
each start of a guest.

Run as `python -m caelum.onemachine.libvirtd HOME [--hide-kvm | --agent-state DIR]`: it replaces itself by the daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

CLONE_NEWNS = 0x00020000
DIRECTORIES = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
    "run": "/run",
}
# Root runs the guests without security labels: their images are ours, and no other user of this libvirt exists.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
stdio_handler = "file"
"""


def main() -> None:
    """Become the daemon."""
    parser = argparse.ArgumentParser(description="Run a private libvirt daemon.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--hide-kvm", action="store_true")
    parser.add_argument("--agent-state", type=Path, help="find out whether KVM works, and tell the agent")
    options = parser.parse_args()
    prepare(options.home)
    hide_kvm = options.hide_kvm or (options.agent_state is not None and not kvm_works(options.agent_state))
    enter(options.home, hide_kvm)
    os.execvp("libvirtd", ["libvirtd", "-p", "/run/libvirtd.pid"])


def prepare(home: Path) -> None:
    """Make the directories and the configuration; what exists is kept, but for run-time state of an earlier boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    booted = home / "boot_id"
    if not booted.exists() or booted.read_text() != boot:
        shutil.rmtree(home / "run", ignore_errors=True)
    for name in DIRECTORIES:
        (home / name).mkdir(parents=True, exist_ok=True)
    for name in ("qemu", "nwfilter", "storage"):
        (home / "etc" / name).mkdir(exist_ok=True)
    for name in ("libvirt", "lock"):
        (home / "run" / name).mkdir(exist_ok=True)
    for name in ("qemu", "images", "boot"):
        (home / "lib" / name).mkdir(exist_ok=True)
    (home / "log" / "qemu").mkdir(exist_ok=True)
    booted.write_text(boot)
    (home / "etc" / "qemu.conf").write_text(QEMU_CONF)
    daemon = home / "etc" / "libvirtd.conf"
    if not daemon.exists():
        daemon.write_text(
            'listen_tls = 0\nlisten_tcp = 0\nauth_unix_rw = "none"\nlog_level = 3\n'
            'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n'
            f'host_uuid = "{uuid.uuid4()}"\n'
        )
    # libvirt resolves its own host name at each start of a guest; without this line it may wait for DNS.
    (home / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")


def kvm_works(agent_state: Path) -> bool:
    """Whether KVM truly works, by the agent's own probe, whose answer is kept where the agent looks for it."""
    # Only here: it brings the agent's libraries, which the tests' daemons need not wait for.
    from caelum.agent.vm import acceleration

    agent_state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return asyncio.run(acceleration.find(agent_state)) == "kvm"


def enter(home: Path, hide_kvm: bool) -> None:
    """Move this process into a mount namespace where libvirt's directories are ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS) failed: root is needed")
    # Slave, not private: an unmount outside must reach this namespace too, or it would keep dead network namespaces.
    _mount("--make-rslave", "/")
    for name, target in DIRECTORIES.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount("--rbind" if name == "run" else "--bind", str(home / name), target)
    _mount("--bind", str(home / "hosts"), "/etc/hosts")
    if hide_kvm and Path("/dev/kvm").exists():
        _hide_kvm(home)


def _hide_kvm(home: Path) -> None:
    """Put a /dev without kvm over the real one."""
    cover = home / "dev"
    cover.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(cover))
    for name in os.listdir("/dev"):
        source, target = Path("/dev") / name, cover / name
        if name == "kvm":
            continue
        if name == "ptmx":
            # A bound ptmx finds no devpts beside it, and guests could have no serial console.
            target.symlink_to("pts/ptmx")
            continue
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            continue
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        _mount("--rbind", str(source), str(target))
    _mount("--move", str(cover), "/dev")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


def installed() -> bool:
    """Whether libvirt's daemon and QEMU are on this machine."""
    return bool(shutil.which("libvirtd", path=_PATH) and shutil.which("qemu-system-x86_64", path=_PATH))


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


if __name__ == "__main__":
    os.environ["PATH"] = _PATH
    main()
