"""A management node of a newer version, as a process: other revisions of the schema, and a version of its own.

newer_server.py MIGRATIONS VERSION PYTHON -m caelum.cli.server ARGUMENTS: the command line of a node after two words.
"""

from __future__ import annotations

import sys
from pathlib import Path

import caelum


def main() -> int:
    """Run the node."""
    scripts, version, *command = sys.argv[1:]
    # Before anything else of ours is loaded, and takes the version from here.
    caelum.__version__ = version
    from caelum.cli import server
    from caelum.kernel import schema

    schema.SCRIPTS = Path(scripts)
    return server.main(command[command.index("-m") + 2 :])


if __name__ == "__main__":
    sys.exit(main())
