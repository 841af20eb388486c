"""Build the small test guest: a Debian kernel, busybox, an SSH server and the QEMU guest agent in 20 MB.

It boots in seconds even without hardware virtualisation, takes its address by DHCP and its hostname, SSH keys and
user data from the metadata service or a NoCloud disk, says on its serial console what it does ("GUEST: ..."), and
reacts to hot plug. Login: root / caelum. Kernel and programs come from Debian packages; nothing is installed on
the machine for them.

    python -m caelum.onemachine.guest_image OUT.qcow2

Invariant: OUT appears whole or not at all. A build that is killed leaves a directory beside OUT that the next one
removes, and no mount: the boot loader is installed in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent / "guest"
MODULE = "caelum.onemachine.guest_image"
WORK = "guest-build-"
SIZE_MB = 48
BLOCK = 4096
PASSWORD = "caelum"  # noqa: S105  the test guest's public password
KERNEL_ARGUMENTS = (
    "console=tty0 console=ttyS0 quiet memhp_default_state=online mitigations=off nokaslr no_timer_check "
    "tsc=reliable 8250.nr_uarts=1 net.ifnames=0"
)
PACKAGES = ("qemu-guest-agent", "dropbear-bin", "libtomcrypt1", "libtommath1")
BOOT_MODULES = ("virtio_pci", "virtio_blk")
SCSI_MODULES = ("virtio_scsi", "sd_mod")
ROOT_MODULES = (
    "virtio_pci", "virtio_net", "button", "evdev", "virtio_console", "virtio_balloon", "virtio_rng", "virtio_scsi",
    "sd_mod", "sr_mod", "isofs",
)  # fmt: skip
LIBRARIES = Path("/lib/x86_64-linux-gnu")


class BuildError(Exception):
    """The image cannot be built, and why."""


def main() -> None:
    """Build the image named on the command line."""
    parser = argparse.ArgumentParser(description="Build the small test guest image.")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--boot-loader", nargs=3, type=Path, help=argparse.SUPPRESS, metavar=("MOUNT", "KERNEL", "INITRD")
    )
    options = parser.parse_args()
    if options.boot_loader:
        _install_boot_loader(options.out, *options.boot_loader)
    else:
        build(options.out)


def build(out: Path) -> None:
    """Build the guest image as qcow2 at `out`. Needs root for one loop mount. Raises BuildError."""
    os.environ["PATH"] = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with _only_build_in(out.parent), tempfile.TemporaryDirectory(prefix=WORK, dir=out.parent) as name:
        work = Path(name)
        kernel, programs = _unpack_packages(work)
        modules = _Modules(kernel)
        initrd = _initramfs(work, modules)
        root = _root(work, programs, modules)
        disk = _disk(work, root, next((kernel / "boot").glob("vmlinuz-*")), initrd)
        part = work / "guest.qcow2"
        _run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", disk, part)
        part.replace(out)


def recipe() -> str:
    """A digest of all that the image is made from, but for the packages' versions."""
    files = [Path(__file__), *sorted(path for path in HERE.rglob("*") if path.is_file())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


@contextmanager
def _only_build_in(directory: Path) -> Iterator[None]:
    """Wait for another build there, and remove what a killed one has left."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in directory.glob(f"{WORK}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(handle)


def _run(*arguments: object, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    words = [str(one) for one in arguments]
    done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, timeout=600, check=False)
    if done.returncode != 0:
        raise BuildError(
            f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        )
    return done.stdout.decode()


def _unpack_packages(work: Path) -> tuple[Path, Path]:
    """Fetch the packages and unpack them below `work`: the kernel's tree and the programs' tree."""
    (debs := work / "debs").mkdir()
    try:
        _download(debs)
    except BuildError:
        # apt's lists are absent, or so old that they name files that are gone.
        _run("apt-get", "update", "-q")
        _download(debs)
    kernel, programs = work / "kernel", work / "programs"
    for deb in debs.glob("*.deb"):
        _run("dpkg-deb", "-x", deb, kernel if deb.name.startswith("linux-image") else programs)
    return kernel, programs


def _download(debs: Path) -> None:
    # As root: the unprivileged user that apt would use may not write into this directory.
    _run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", _kernel_package(), *PACKAGES, cwd=debs)


def _kernel_package() -> str:
    """The real package behind Debian's newest cloud kernel."""
    for line in _run("apt-cache", "depends", "linux-image-cloud-amd64").splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation == "Depends" and name.startswith("linux-image-"):
            return name
    raise BuildError("no cloud kernel package is known to apt")


class _Modules:
    """The kernel's modules and what each needs before it."""

    def __init__(self, kernel: Path) -> None:
        self._kernel = kernel
        base = kernel / "lib" / "modules"
        self._version = next(base.iterdir()).name
        _run("depmod", "-b", kernel, self._version)

    def needed_by(self, *names: str) -> list[Path]:
        """The files to load, in order, for the named modules."""
        files: dict[str, None] = {}
        for name in names:
            shown = _run("modprobe", "-d", self._kernel, "-S", self._version, "--show-depends", name)
            files.update({line.split()[1]: None for line in shown.splitlines() if line.startswith("insmod")})
        return [Path(one) for one in files]

    def install(self, into: Path, files: Iterable[Path], start: int = 10) -> int:
        """Copy modules so that their names sort in load order. Returns the next free number."""
        into.mkdir(parents=True, exist_ok=True)
        number = start
        for file in files:
            target = into / f"{number}-{file.name}"
            shutil.copyfile(file, target)
            _run("strip", "-g", target)
            number += 1
        return number


def _initramfs(work: Path, modules: _Modules) -> Path:
    tree = work / "initramfs"
    for name in ("bin", "proc", "sys", "dev", "new"):
        (tree / name).mkdir(parents=True)
    shutil.copyfile("/bin/busybox", tree / "bin" / "busybox")
    (tree / "bin" / "busybox").chmod(0o755)
    shutil.copy(HERE / "initramfs" / "init", tree / "init")
    (tree / "init").chmod(0o755)
    boot = modules.needed_by(*BOOT_MODULES)
    scsi = [one for one in modules.needed_by(*SCSI_MODULES) if one not in boot]
    after = modules.install(tree / "mod", boot)
    modules.install(tree / "mod2", scsi, after)
    names = "\n".join(str(one.relative_to(tree)) for one in sorted(tree.rglob("*"))).encode()
    archive = work / "initrd"
    with archive.open("wb") as out:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            input=names, stdout=out, cwd=tree, check=True, timeout=60,
        )  # fmt: skip
    return archive


def _root(work: Path, programs: Path, modules: _Modules) -> Path:
    """The guest's root file system, without its kernel."""
    root = work / "root"
    shutil.copytree(HERE / "rootfs", root)
    for name in (
        "bin proc sys dev tmp run root/.ssh usr/bin var/lib mnt boot lib64 usr/lib etc/dropbear etc/qemu var/run"
    ).split():
        (root / name).mkdir(parents=True, exist_ok=True)
    for script in _scripts(root):
        script.chmod(0o755)
    _busybox(root)
    _programs(root, programs)
    _accounts(root)
    boot_only = {file.name for file in modules.needed_by(*BOOT_MODULES)}
    modules.install(root / "mod", [one for one in modules.needed_by(*ROOT_MODULES) if one.name not in boot_only])
    return root


def _scripts(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"#!"):
            yield path


def _busybox(root: Path) -> None:
    shutil.copyfile("/bin/busybox", root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)
    for applet in _run("/bin/busybox", "--list").split():
        if applet not in ("busybox", "init", "linuxrc"):
            (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin" / "init").symlink_to("../bin/busybox")
    (root / "sbin" / "poweroff").symlink_to("/bin/poweroff")


def _programs(root: Path, programs: Path) -> None:
    """The SSH server and the guest agent with the shared libraries they need."""
    binaries = [programs / "usr" / "sbin" / name for name in ("qemu-ga", "dropbear")]
    for binary in binaries:
        shutil.copy(binary, root / "usr" / "sbin")
    target = root / LIBRARIES.relative_to("/")
    target.mkdir(parents=True)
    unpacked = programs / "usr" / LIBRARIES.relative_to("/")
    for library in {*_libraries(binaries, unpacked), LIBRARIES / "libnss_files.so.2"}:
        shutil.copyfile(library, target / library.name)
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    shutil.copyfile(loader, root / "lib64" / loader.name)
    (root / "lib64" / loader.name).chmod(0o755)


def _libraries(binaries: list[Path], unpacked: Path) -> set[Path]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(unpacked)}
    shown = subprocess.run(
        ["ldd", *binaries],
        env=environment, check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    fields = [line.split() for line in shown.splitlines()]
    return {Path(one[2]) for one in fields if len(one) > 2 and one[2].startswith("/")}


def _accounts(root: Path) -> None:
    etc = root / "etc"
    hashed = _run("openssl", "passwd", "-6", PASSWORD).strip()
    (etc / "passwd").write_text(f"root:{hashed}:0:0:root:/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n")
    (etc / "shells").write_text("/bin/sh\n")
    (etc / "hostname").write_text("guest\n")
    (etc / "resolv.conf").write_text("")
    for private in (root / "root", root / "root" / ".ssh"):
        private.chmod(0o700)
    _run("dropbearkey", "-t", "ed25519", "-f", etc / "dropbear" / "dropbear_ed25519_host_key")


def _disk(work: Path, root: Path, kernel: Path, initrd: Path) -> Path:
    """An MBR disk with one ext4 partition that extlinux boots."""
    (root / "boot" / "extlinux.conf").write_text(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n LINUX /boot/vmlinuz\n"
        f" APPEND {KERNEL_ARGUMENTS}\n INITRD /boot/initrd\n"
    )
    disk, partition = work / "disk.raw", work / "partition"
    with disk.open("wb") as out:
        out.truncate(SIZE_MB << 20)
    _run("sfdisk", "-q", disk, stdin=b"label: dos\n2048,,83,*\n")
    _run("dd", "if=/usr/lib/syslinux/mbr/mbr.bin", f"of={disk}", "conv=notrunc", "status=none")
    features = "^metadata_csum,^64bit,^has_journal,^flex_bg"
    blocks = (SIZE_MB - 1) * (1 << 20) // BLOCK
    _run(
        "mke2fs", "-q", "-t", "ext4", "-O", features, "-b", BLOCK, "-L", "guestroot", "-E", "root_owner=0:0",
        "-d", root, partition, blocks,
    )  # fmt: skip
    _run("dd", f"if={partition}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    mount = work / "mount"
    mount.mkdir()
    _run("unshare", "--mount", sys.executable, "-m", MODULE, disk, "--boot-loader", mount, kernel, initrd)
    return disk


def _install_boot_loader(disk: Path, mount: Path, kernel: Path, initrd: Path) -> None:
    """Put kernel, initrd and extlinux onto the disk's file system; the mount ends with this process's namespace."""
    _run("mount", "-o", "loop,offset=1048576", disk, mount)
    # Copied here and not by mke2fs -d, which leaves holes for zero blocks that extlinux cannot read.
    _run("cp", "--sparse=never", kernel, mount / "boot" / "vmlinuz")
    _run("cp", "--sparse=never", initrd, mount / "boot" / "initrd")
    _run("extlinux", "--install", mount / "boot")
    _run("umount", mount)


if __name__ == "__main__":
    main()
