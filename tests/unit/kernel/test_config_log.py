"""Configuration from file and environment; logs that carry the context and no secrets."""

import json
import logging
from pathlib import Path
from typing import Annotated

import pytest

from caelum.kernel import context
from caelum.kernel.config import Config, default_address, load
from caelum.kernel.log import MASK, Logging, safe
from caelum.kernel.message import ApiMessage, Param, rest


def test_defaults_run_a_one_machine_cloud() -> None:
    config = load(environment={})
    assert config == Config()
    assert config.resolved_database_url() == "sqlite+aiosqlite:////var/lib/caelum/caelum.db"
    assert config.bus_url == "memory:"
    assert config.resolved_host() == default_address()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "caelum.toml"
    file.write_text('data_dir = "/srv/cloud"\napi_port = 9090\nlog_level = "DEBUG"\ndisabled_services = ["eip"]\n')
    config = load(file, {"CAELUM_API_PORT": "9191", "CAELUM_DISABLED_EXTENSIONS": "A,B", "CAELUM_UNRELATED": "x"})
    assert config.data_dir == Path("/srv/cloud")
    assert config.api_port == 9191
    assert config.disabled_services == ["eip"]
    assert config.disabled_extensions == ["A", "B"]
    assert config.resolved_database_url() == "sqlite+aiosqlite:////srv/cloud/caelum.db"


@pytest.mark.parametrize(
    "text", ['api_port = "many"\n', 'log_level = "LOUD"\n', "unknown = 1\n", "node_lease_seconds = 9\n"]
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path: Path, text: str) -> None:
    file = tmp_path / "caelum.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match="the configuration is wrong"):
        load(file, {})


@rest("POST /log-tests", package="org.zstack.test", service="log-test")
class AddLogTest(ApiMessage[None], kw_only=True):
    """An operation with secrets, for the tests."""

    name: str
    pin: Annotated[str, Param(secret=True)]
    ssh_password: str | None = None


def test_secrets_are_masked() -> None:
    masked = safe({"msg": AddLogTest(name="n", pin="1234", ssh_password="pw"), "list": [{"apiToken": "t", "a": 1}]})
    assert masked["msg"]["name"] == "n"
    assert masked["msg"]["pin"] == MASK
    assert masked["msg"]["ssh_password"] == MASK
    assert masked["list"] == [{"apiToken": MASK, "a": 1}]


def test_json_logs_carry_the_context_and_rotate(tmp_path: Path) -> None:
    logs = Logging(Config(data_dir=tmp_path, log_format="json", log_file_bytes=2000, log_file_count=2), "node-a")
    logs.start()
    try:
        with context.use(context.TaskContext(job_uuid="job-1", api="APICreateZoneMsg", trace="t")):
            logging.getLogger("caelum.test").warning("hello %s", "world")
        try:
            raise ValueError("with a trace")
        except ValueError:
            logging.getLogger("caelum.test").exception("it failed")
    finally:
        logs.stop()
        logs.stop()
    lines = [json.loads(line) for line in (tmp_path / "log" / "server.log").read_text().splitlines()]
    first = next(line for line in lines if line["message"] == "hello world")
    assert (first["job"], first["api"], first["trace"], first["node"]) == ("job-1", "APICreateZoneMsg", "t", "node-a")
    assert first["level"] == "WARNING"
    failed = next(line for line in lines if line["message"] == "it failed")
    assert "ValueError: with a trace" in failed["error"]
    assert "job" not in failed
    logs.start()
    for _ in range(50):
        logging.getLogger("caelum.test").warning("x" * 100)
    logs.stop()
    assert sorted(one.name for one in (tmp_path / "log").iterdir()) == ["server.log", "server.log.1", "server.log.2"]


def test_console_logs_are_for_people(tmp_path: Path) -> None:
    logs = Logging(Config(data_dir=tmp_path), "node-a")
    logs.start()
    with context.use(context.TaskContext(job_uuid="job-1")):
        logging.getLogger("caelum.test").warning("hello")
    logs.stop()
    text = (tmp_path / "log" / "server.log").read_text()
    assert text.rstrip().endswith("WARNING caelum.test: hello [job=job-1]")
