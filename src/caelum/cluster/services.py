"""What the nodes share, each as a program: `python -m caelum.cluster.services postgresql|rabbitmq DIRECTORY PORT`.

Invariant: it runs as long as its server runs: it ends with an error when that dies, so that its supervisor starts both
again, and takes the server with it when it is told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from caelum.cluster.postgres import Postgres
from caelum.cluster.rabbitmq import RabbitMq

LOOK_INTERVAL = 0.2


async def serve(server: Postgres | RabbitMq) -> int:
    """Run it until SIGTERM or its death; the exit code."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await server.start()
    while server.running and not told.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), LOOK_INTERVAL)
    await server.stop()
    return 0 if told.is_set() else 1


def main() -> int:
    """The command."""
    name, directory, port = sys.argv[1:]
    Path(directory).mkdir(parents=True, exist_ok=True)
    kind: type[Postgres | RabbitMq] = Postgres if name == "postgresql" else RabbitMq
    return asyncio.run(serve(kind(Path(directory), int(port))))


if __name__ == "__main__":
    sys.exit(main())
