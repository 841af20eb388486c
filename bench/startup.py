"""How long a server takes from its start until it is ready, what it then needs, and how long `caelum --help` takes.

    python bench/startup.py [--runs 5] [--json]

Goals on an idle machine of 2 cores: ready within 3 s, at most 150 MB of memory, help within 150 ms. `processor` is the
processor's time and hardly depends on what else the machine does. Every number is a median.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READY = "caelum is ready"
IDLE_SECONDS = 2.0
TIMEOUT = 120.0
Numbers = dict[str, float]


def server(directory: Path) -> Numbers:
    """One start on a data directory: seconds until ready, processor seconds, and MB after a while of idling."""
    environment = os.environ | {
        "CAELUM_AGENT_LISTEN_PORT": "0", "CAELUM_AGENT_LISTEN_HOST": "127.0.0.1",
        "CAELUM_CONSOLE_PORT": "0", "CAELUM_CONSOLE_HOST": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", "caelum.cli.main", "server", "--data-dir", str(directory)]
    command += ["--api-host", "127.0.0.1", "--api-port", "0"]
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            _wait_for_ready(process)
            ready = time.perf_counter() - begun
            used = processor_seconds(process.pid)
            time.sleep(IDLE_SECONDS)
            return {"seconds": ready, "processor": used, "megabytes": megabytes(process.pid)}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT)


def _wait_for_ready(process: subprocess.Popen[str]) -> None:
    for line in process.stdout or ():
        if line.startswith(READY):
            return
    raise SystemExit("the server ended before it was ready")


def megabytes(pid: int) -> float:
    """The resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def help_text() -> Numbers:
    """One `caelum --help`."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(Path(sys.executable).parent / "caelum"), "--help"], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - begun, "processor": used}


def median(runs: list[Numbers]) -> Numbers:
    """The median of each number."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def measure(runs: int) -> dict[str, Numbers]:
    """Measure everything."""
    first, again = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            first.append(server(Path(directory)))
            again.append(server(Path(directory)))
    helps = [help_text() for _ in range(runs)]
    return {"first start": median(first), "start": median(again), "caelum --help": median(helps)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = measure(options.runs)
    if options.json:
        print(json.dumps(measured))
        return
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, median of {options.runs}")
    for what, numbers in measured.items():
        print(f"{what:14} " + "  ".join(f"{name} {value:8.2f}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
