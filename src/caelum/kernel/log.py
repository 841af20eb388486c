"""Logs: one line per event with who, which job and which operation, for people or for machines.

Invariant: writing a log never blocks the event loop (a thread writes), and secrets do not get in: fields declared
`Param(secret=True)` and well-known names are masked by `safe()`.
"""

from __future__ import annotations

import atexit
import copy
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from caelum.kernel import context
from caelum.kernel.config import Config
from caelum.kernel.message import ApiMessage, secret_fields

MASK = "******"
SECRET_WORDS = ("password", "passwd", "secret", "private_key", "privatekey", "token", "credential")
_BUFFER = 10_000


class ContextFilter(logging.Filter):
    """Adds the task context to each record, in the thread that logs."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops anything."""
        task = context.current()
        record.node = self._node
        record.job = task.job_uuid
        record.actor = task.actor.account_uuid
        record.api = task.api
        record.trace = task.trace
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; None is left out."""
        fields = {
            "ts": round(record.created, 6),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name, None) for name in ("node", "job", "actor", "api", "trace")},
            "error": record.exc_text,
        }
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None}).decode()


class ConsoleFormatter(logging.Formatter):
    """A line for people: time, level, place, text, and what it belongs to."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The record with its job and operation in brackets at the end of the first line."""
        first, *rest = super().format(record).split("\n")
        belongs = [f"{name}={value}" for name in ("api", "job") if (value := getattr(record, name, None))]
        return "\n".join([f"{first} [{' '.join(belongs)}]" if belongs else first, *rest])


class _Queue(logging.handlers.QueueHandler):
    """Hands records to the writing thread; when that is hopelessly behind, drops them instead of waiting."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make text of the arguments and the exception now: both may change, and neither may outlive the call."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            sys.stderr.write("the log writer is behind; a record is lost\n")


class Logging:
    """The logging of one process, set up by `start` and flushed by `stop`."""

    def __init__(self, config: Config, node: str) -> None:
        self._config = config
        self._node = node
        self._listener: logging.handlers.QueueListener | None = None
        self._handler: logging.Handler | None = None

    def start(self) -> None:
        """Send all records to the file, and to the terminal when there is one."""
        records: queue.Queue[logging.LogRecord] = queue.Queue(_BUFFER)
        self._handler = _Queue(records)
        self._handler.addFilter(ContextFilter(self._node))
        self._listener = logging.handlers.QueueListener(records, *self._sinks(), respect_handler_level=True)
        self._listener.start()
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(self._config.log_level)
        for noisy in ("sqlalchemy.engine", "aiosqlite", "asyncio", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        atexit.register(self.stop)

    def stop(self) -> None:
        """Write what is left."""
        if self._listener is not None and self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._listener.stop()
            self._listener = None
            atexit.unregister(self.stop)

    def _sinks(self) -> list[logging.Handler]:
        config = self._config
        path = config.log_file or config.data_dir / "log" / "server.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        formatter = JsonFormatter() if config.log_format == "json" else ConsoleFormatter()
        sinks: list[logging.Handler] = [
            logging.handlers.RotatingFileHandler(
                path, maxBytes=config.log_file_bytes, backupCount=config.log_file_count, encoding="utf-8", delay=True
            )
        ]
        if sys.stderr.isatty():
            sinks.append(logging.StreamHandler())
        for sink in sinks:
            sink.setFormatter(formatter)
        return sinks


def safe(value: Any) -> Any:
    """`value` as plain data with its secrets masked, fit for a log line."""
    if isinstance(value, msgspec.Struct):
        hidden = _secrets_of(type(value))
        return {name: MASK if name in hidden else safe(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {name: MASK if _is_secret(str(name)) else safe(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [safe(one) for one in value]
    return value


@lru_cache(maxsize=2048)
def _secrets_of(cls: type[msgspec.Struct]) -> frozenset[str]:
    named = {name for name in cls.__struct_fields__ if _is_secret(name)}
    return frozenset(named | (secret_fields(cls) if issubclass(cls, ApiMessage) else set()))


def _is_secret(name: str) -> bool:
    flat = name.lower()
    return any(word in flat for word in SECRET_WORDS)
