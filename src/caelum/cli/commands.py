"""Commands made of the operations: options from parameters, names instead of UUIDs, tables instead of JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from caelum.cli import output, session
from caelum.cli.naming import groups, option_of, query_of, verb_of
from caelum.sdk.client import Client
from caelum.sdk.manifest import Operation, Parameter, load

_UUID = re.compile(r"[0-9a-f]{32}")
_NUMBERS = ("integer", "number")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def run(group: str, arguments: list[str]) -> int:
    """Run `caelum <group> <arguments>`."""
    parser = argparse.ArgumentParser(prog=f"caelum {group}", description=f"Operations of {group}.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    by_verb = {verb_of(one): one for one in groups()[group]}
    wanted = arguments[0] if arguments else ""
    for verb, operation in sorted(by_verb.items()):
        command = commands.add_parser(verb, help=operation.doc.split(". ")[0], description=operation.doc)
        if verb == wanted:  # options only of the command that is asked for: building all of them takes longer
            _add_options(command, operation)
    if group == "vm":
        _add_console(commands)
    options = parser.parse_args(arguments)
    if options.command == "console":
        from caelum.cli.console import attach

        return attach(session.client(), options.name)
    return _execute(by_verb[options.command], options)


def _add_console(commands: Any) -> None:
    console = commands.add_parser("console", help="Attach this terminal to a VM's serial console; Ctrl-] leaves.")
    console.add_argument("name", help="name or UUID of the VM")


def _add_options(command: argparse.ArgumentParser, operation: Operation) -> None:
    command.add_argument("--output", "-o", choices=("table", "json"), default="table")
    if operation.query:
        _add_query_options(command)
        return
    command.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait for the end of the job")
    command.add_argument("--wait", action="store_true", default=True, help="wait for the end (the default)")
    command.add_argument("--timeout", type=float, default=1800.0, help="seconds to wait")
    for parameter in operation.parameters:
        _add_parameter(command, parameter)


def _add_query_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("where", nargs="*", help="conditions such as state=Running or vmNics.ip~=10.%%")
    command.add_argument("--limit", type=int)
    command.add_argument("--start", type=int)
    command.add_argument("--sort", help="field, with - before it for descending")
    command.add_argument("--fields", help="comma-separated fields, as columns")
    command.add_argument("--count", action="store_true", help="only how many there are")


def _add_parameter(command: argparse.ArgumentParser, parameter: Parameter) -> None:
    text = {"list": "comma-separated", "map": "JSON object", "object": "JSON"}.get(parameter.kind, "")
    if parameter.resource:
        text = f"{text} name or UUID of {parameter.resource.removesuffix('VO')}".strip()
    if parameter.location == "url":
        command.add_argument(parameter.name, help=text or parameter.name)
        return
    command.add_argument(
        f"--{option_of(parameter)}",
        dest=parameter.name,
        required=parameter.required,
        choices=parameter.values or None,
        help=text,
        metavar=None if parameter.values else parameter.kind.upper(),
    )


def _execute(operation: Operation, options: argparse.Namespace) -> int:
    client = session.client()
    if operation.query:
        return _query(client, operation, options)
    parameters = {
        one.name: _hashed(text) if _is_account_password(operation, one) else _value(client, one, text)
        for one in operation.parameters
        if (text := getattr(options, one.name)) is not None
    }
    if not options.wait:
        print(client.submit(operation.name, **parameters))
        return 0
    progress = output.Progress(operation.name)
    try:
        result = client.call(operation.name, timeout=options.timeout, progress=progress, **parameters)
    finally:
        progress.end()
    output.show(result, options.output)
    return 0


def _query(client: Client, operation: Operation, options: argparse.Namespace) -> int:
    asked: dict[str, Any] = {
        name: getattr(options, name) for name in ("limit", "start", "sort") if getattr(options, name) is not None
    }
    if options.count:
        print(client.count(operation.name, *options.where))
        return 0
    rows = client.call(operation.name, q=options.where, **asked) or []
    output.show(rows, options.output, options.fields.split(",") if options.fields else ())
    return 0


def _is_account_password(operation: Operation, parameter: Parameter) -> bool:
    """Passwords of hosts and consoles are needed as they are; those of accounts the cloud is never told."""
    return parameter.secret and operation.category == "identity"


def _hashed(password: str) -> str:
    """An account's password as it travels."""
    import hashlib

    return hashlib.sha512(password.encode()).hexdigest()


def _value(client: Client, parameter: Parameter, text: str) -> Any:
    """An option's text as the parameter's value."""
    if parameter.kind == "list":
        return [_scalar(client, parameter, one) for one in text.split(",") if one]
    if parameter.kind in ("map", "object"):
        return json.loads(text)
    if parameter.kind == "boolean":
        return text.lower() in ("true", "yes", "1")
    if parameter.kind in _NUMBERS:
        return _number(text, parameter.kind)
    return _scalar(client, parameter, text)


def _number(text: str, kind: str) -> int | float:
    """A number; sizes may end in K, M, G or T."""
    if text[-1:].upper() in _UNITS:
        return int(float(text[:-1]) * _UNITS[text[-1].upper()])
    return int(text) if kind == "integer" else float(text)


def _scalar(client: Client, parameter: Parameter, text: str) -> str:
    """The text, or the UUID of the one resource with this name."""
    if parameter.resource is None or _UUID.fullmatch(text):
        return text
    query = query_of(parameter.resource)
    if query not in load():
        return text
    found = client.call(query, q=[f"name={text}"], limit=2) or []
    if len(found) == 1:
        return str(found[0]["uuid"])
    kind = parameter.resource.removesuffix("VO")
    sys.exit(f"{'Several' if found else 'No'} {kind} named {text!r}" + ("; give a UUID" if found else ""))
