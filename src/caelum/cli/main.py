"""`caelum`: the command line. Modules are loaded only for the command that is asked for, so that help is instant."""

from __future__ import annotations

import argparse
import sys

PROGRAMS = {
    "server": ("caelum.cli.server", "run a management node"),
    "agent": ("caelum.agent.main", "run the agent of a hypervisor host"),
    "simulator": ("caelum.simulator.__main__", "simulate hypervisor hosts"),
    "up": ("caelum.onemachine.up", "start a cloud on this machine"),
    "down": ("caelum.onemachine.down", "stop the cloud on this machine"),
    "status": ("caelum.onemachine.status", "what runs of the cloud on this machine"),
    "admin": ("caelum.cli.admin", "audit and repair, for operators"),
}


def main(arguments: list[str] | None = None) -> int:
    """Entry of the `caelum` command. Returns the exit code: 0 done, 1 refused, 2 wrong usage."""
    try:
        code = _command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        return 141


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        return _help()
    if words[0] == "--version":
        from caelum import __version__

        print(__version__)
        return 0
    if words[0] in PROGRAMS:
        return _program(words)
    return _operation(words)


def _program(words: list[str]) -> int:
    import importlib

    module = importlib.import_module(PROGRAMS[words[0]][0])
    sys.argv = [f"caelum {words[0]}", *words[1:]]
    return int(module.main() or 0)


def _operation(words: list[str]) -> int:
    from caelum.sdk.client import ApiError

    try:
        if words[0] == "login":
            return _login(words[1:])
        if words[0] == "logout":
            return _logout()
        from caelum.cli.commands import run

        if not _known(words):
            print(f"caelum: {words[0]!r} is not a command; see caelum --help", file=sys.stderr)
            return 2
        return run(words[0], words[1:])
    except ApiError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except (OSError, TimeoutError) as error:
        print(f"The cloud cannot be reached: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _known(words: list[str]) -> bool:
    """Whether the group of a command is known; the server is asked when the command is not."""
    from caelum.cli import plugins
    from caelum.cli.naming import groups, verb_of

    plugins.recall()
    verb = next((one for one in words[1:2] if not one.startswith("-")), None)
    known = groups().get(words[0], [])
    if not known or (verb is not None and verb != "console" and verb not in map(verb_of, known)):
        plugins.refresh()
    return words[0] in groups()


def _login(words: list[str]) -> int:
    import getpass

    from caelum.cli import plugins, session
    from caelum.sdk.client import Client

    parser = argparse.ArgumentParser(prog="caelum login", description="Open a session; later commands use it.")
    parser.add_argument("--account", default="admin")
    parser.add_argument("--password", help="asked for when it is not given")
    parser.add_argument("--url", default=session.load().get("url", session.DEFAULT_URL), help="comma-separated")
    options = parser.parse_args(words)
    client = Client(*options.url.split(","))
    client.login(options.account, options.password or getpass.getpass("Password: "))
    session.save(options.url, client.session)
    plugins.refresh()
    print(f"Logged in to {options.url} as {options.account}.")
    return 0


def _logout() -> int:
    from caelum.cli import session

    client = session.client()
    if client.session:
        client.call("LogOut", sessionUuid=client.session)
    session.save(session.load().get("url", session.DEFAULT_URL), None)
    return 0


def _help() -> int:
    from caelum.cli import plugins
    from caelum.cli.naming import groups

    plugins.recall()

    print("usage: caelum COMMAND ...\n\nSession\n  login      open a session\n  logout     end it\n\nPrograms")
    for name, (_, text) in PROGRAMS.items():
        print(f"  {name:10} {text}")
    print("\nOperations (caelum GROUP --help lists them)")
    for name, operations in groups().items():
        print(f"  {name:18} {len(operations):3} operations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
