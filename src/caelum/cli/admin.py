"""`caelum admin`: what operators do beside the API's operations: audits, nodes, certificates for hosts, upgrades."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from caelum.cli import output, session, upgrade
from caelum.kernel.ring import Ring
from caelum.sdk.client import ApiError

_UUID = re.compile(r"[0-9a-f]{32}")
_HOST_FILES = ("tls.crt", "tls.key", "ca.crt")


def main(arguments: list[str] | None = None) -> int:
    """The command. 0 done, 1 refused or found something, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ApiError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, TimeoutError) as error:
        print(f"It did not work: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="caelum admin", description="For operators.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    audit = commands.add_parser(
        "audit", help="compare database, hosts and storages; exit code 1 when something is wrong"
    )
    audit.add_argument("--timeout", type=float, default=600.0, help="seconds to wait")
    nodes = commands.add_parser(
        "nodes", help="the management nodes that are up, and the share of all resources that each serves"
    )
    for command, run in ((audit, _audit), (nodes, _nodes)):
        command.add_argument("--output", "-o", choices=("table", "json"), default="table")
        command.set_defaults(run=run)
    _add_certificate(commands)
    upgrade.add_to(commands)
    return parser


def _add_certificate(commands: Any) -> None:
    issue = commands.add_parser(
        "issue-host-certificate",
        help="make the certificate with which a host's agent is trusted",
        description="Make ca.crt, tls.crt and tls.key for a host's agent (its --tls-dir). Runs where the server's data"
        " directory is, and needs no running server.",
    )
    issue.add_argument("--host-uuid", help="the host's UUID; a new one when it is not given")
    issue.add_argument("--address", action="append", default=[], help="an address or name of the host; may be repeated")
    issue.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the three files are put")
    issue.add_argument("--data-dir", type=Path, help="the server's data directory")
    issue.add_argument("--force", action="store_true", help="replace files that are there")
    issue.set_defaults(run=_issue)


def _audit(options: argparse.Namespace) -> int:
    progress = output.Progress("audit")
    try:
        report = session.client().call("RunAudit", timeout=options.timeout, progress=progress)
    finally:
        progress.end()
    if options.output == "json":
        output.show(report, "json")
    else:
        _print_report(report)
    return 0 if report["clean"] else 1


def _print_report(report: dict[str, Any]) -> None:
    looked_at = ", ".join(f"{number} {kind}" for kind, number in sorted(report["checked"].items()) if number)
    for one in report["findings"]:
        print(
            f"{one['severity']:8} {one['kind']}  {one['resourceType']} {one['resourceUuid']}\n         {one['details']}"
        )
    print(f"{'Clean' if report['clean'] else 'Not clean'}: looked at {looked_at or 'nothing'}.")


def _nodes(options: argparse.Namespace) -> int:
    client = session.client()
    rows = client.query("ManagementNode")
    ring = Ring()
    for row in rows:
        ring.join(row["uuid"])
    shares = ring.shares()
    shown = [{**row, "share": f"{shares[row['uuid']]:.1%}"} for row in rows]
    output.show(shown, options.output, ("uuid", "hostName", "joinDate", "heartBeat", "share"))
    if options.output == "table":
        print(f"Version {client.call('GetVersion')['version']}.")
    return 0


def _issue(options: argparse.Namespace) -> int:
    from caelum.kernel import config, pki
    from caelum.kernel.ids import new_uuid

    host_uuid = options.host_uuid or new_uuid()
    if not _UUID.fullmatch(host_uuid):
        print(f"{host_uuid!r} is not a UUID of 32 hexadecimal digits", file=sys.stderr)
        return 2
    directory = (options.data_dir or config.load().data_dir) / "pki"
    if not (directory / "ca.key").exists():
        print(f"There is no authority in {directory}: start the server once, or give --data-dir.", file=sys.stderr)
        return 1
    present = [name for name in _HOST_FILES if (options.out / name).exists()]
    if present and not options.force:
        print(f"{options.out} has {', '.join(present)} already; --force replaces them.", file=sys.stderr)
        return 1
    authority = pki.CertificateAuthority.open(directory)
    files = pki.Files(*(options.out / name for name in _HOST_FILES))
    pki.store(files, authority.issue(pki.Identity("host", host_uuid), options.address))
    files.authority.write_bytes(authority.certificate_pem)
    print(f"{options.out}: certificate of host {host_uuid}, good for {pki.LIFETIME.days} days; the agent renews it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
