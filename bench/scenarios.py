"""The scenarios: each measures something on a rig of its own and answers with rows.

`quick` is what `make bench` runs, with smaller numbers where the whole would take too long; a row's id says how many.
"""

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bus
import micro
import startup
from api import Api
from fill import Filler
from furnish import Furniture, furnish
from load import Outcome, closed, opened
from results import Row
from rig import ClusterRig, Rig, Usage, samples
from spent import Profile

from caelum.kernel.metrics import BUCKETS

Measure = Callable[["Mode"], Awaitable[list[Row]]]
CREATE = "Creating VMs"
LISTS = "Lists of many VMs, as a tenant"
HOSTS = "Many hosts"
START = "Start and idling"
CLUSTERS = "Several management nodes on PostgreSQL and RabbitMQ"
CUT = "Given up"
SPENT = "Where the server's time goes"
_FEW_HOSTS = 20
_PATIENCE = 1800


class Mode(NamedTuple):
    """How much, and where a profile of the server goes, if anywhere. `scale` makes large numbers smaller."""

    full: bool
    profile: Path | None = None
    scale: float = 1.0

    def count(self, whole: int) -> int:
        """So many of this many."""
        return max(1, round(whole * self.scale))


class Scenario(NamedTuple):
    """A scenario by name; `limit` are the seconds after which it is given up."""

    name: str
    measure: Measure
    quick: bool
    limit: float = 600.0

    def given_up(self, seconds: float) -> Row:
        """The row of a scenario that ran out of time."""
        return Row(id=f"{self.name}/time", scenario=CUT, value=seconds, unit="s", beyond=True)


def addresses(count: int) -> list[str]:
    first = ipaddress.ip_address("127.1.0.1")
    return [str(first + number) for number in range(count)]


class Cloud:
    """A furnished rig, and VMs in it."""

    def __init__(self, rig: Rig, made: Furniture) -> None:
        self.rig, self.made = rig, made
        self.uuids: list[str] = []

    async def create(self, number: int, **more: Any) -> None:
        """Create a VM and wait until it runs."""
        apis = getattr(self.rig, "apis", [self.rig.api])
        api = apis[number % len(apis)]
        vm = await api.call("CreateVmInstance", name=f"vm{number}", **self.made.vm, **more)
        assert vm["state"] == "Running", vm
        self.uuids.append(vm["uuid"])

    async def destroy(self, number: int) -> None:
        """Destroy a VM that was created."""
        await self.rig.api.call("DestroyVmInstance", uuid=self.uuids[number])


@asynccontextmanager
async def furnished(hosts: int = _FEW_HOSTS, nodes: int = 0) -> Any:
    """A cloud with so many hosts and the image on each of them; on so many nodes of a cluster, or embedded."""
    async with ClusterRig(hosts, nodes) if nodes else Rig(hosts) as rig:
        made = await furnish(rig.api, rig.directory, rig.agent_port, addresses(hosts))
        cloud = Cloud(rig, made)
        # The first VM on a host brings the image there, which is not what is measured.
        (await closed(cloud.create, 2 * hosts, 20)).require()
        cloud.uuids.clear()
        yield cloud


async def _measured(
    cloud: Cloud, what: str, count: int, load: Awaitable[Outcome], mode: Mode
) -> tuple[Outcome, list[Row]]:
    """Run a load; what each of its operations cost."""
    before = await cloud.rig.usage()
    profiler = _profiler(cloud.rig, mode, what)
    outcome = (await load).require()
    used = (await cloud.rig.usage()).since(before)
    if profiler is not None:
        await asyncio.to_thread(profiler.wait)
    return outcome, _costs(what, count, used)


def _profiler(rig: Rig, mode: Mode, what: str) -> subprocess.Popen[bytes] | None:
    if mode.profile is None:
        return None
    mode.profile.mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).parent / "py-spy"),
        "record",
        "--gil",
        "-d",
        "15",
        "-r",
        "200",
        "-f",
        "speedscope",
    ]
    command += ["-p", str(rig.server.pid), "-o", str(mode.profile / f"{what.replace('/', '-')}.json")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _costs(what: str, count: int, used: Usage) -> list[Row]:
    return [
        _row(f"{what}/server-cpu", used.server / count * 1000, "ms/op"),
        _row(f"{what}/simulator-cpu", used.simulator / count * 1000, "ms/op"),
        _row(f"{what}/load-cpu", used.load / count * 1000, "ms/op"),
        _row(f"{what}/statements", used.statements / count, "/op"),
        _row(f"{what}/transactions", used.transactions / count, "/op"),
        _row(f"{what}/loop-lag-p99.9", used.lag(0.999), "ms"),
        _row(f"{what}/loop-lag-own-p99.9", used.own_lag(0.999), "ms"),
    ]


def _row(name: str, value: float, unit: str, goal: float | None = None, scenario: str = CREATE, **more: Any) -> Row:
    return Row(id=name, scenario=scenario, value=value, unit=unit, goal=goal, **more)


# --- creating -------------------------------------------------------------------------------------------------------


async def create_one(mode: Mode) -> list[Row]:
    """One VM after the other."""
    count = 200 if mode.full else 30
    async with furnished() as cloud:
        done, costs = await _measured(cloud, "create-1", count, closed(cloud.create, count, 1), mode)
    return [
        _row("create-1/p50", done.percentile(0.5), "ms", 60),
        _row("create-1/p99", done.percentile(0.99), "ms", 150),
        *costs,
    ]


async def create_steadily(mode: Mode) -> list[Row]:
    """Open load: creations begin at a fixed rate, whatever became of the ones before."""
    count, rate = (300, 5.0) if mode.full else (40, 2.0)
    async with furnished() as cloud:
        done, costs = await _measured(cloud, f"create-open-{rate:g}", count, opened(cloud.create, count, rate), mode)
    return [_row(f"create-open-{rate:g}/p50", done.percentile(0.5), "ms"),
            _row(f"create-open-{rate:g}/p99", done.percentile(0.99), "ms"), *costs]  # fmt: skip


async def create_at_once(mode: Mode) -> list[Row]:
    """All at once."""
    count = 500 if mode.full else 100
    async with furnished() as cloud:
        done, costs = await _measured(cloud, f"create-{count}-at-once", count, closed(cloud.create, count, count), mode)
    goal = 3.5 if mode.full else None
    return [_row(f"create-{count}-at-once/seconds", done.seconds, "s", goal), *costs]


async def create_thousand(mode: Mode) -> list[Row]:
    """1,000 by 100 clients, then destroyed."""
    return await _there_and_back(mode.count(1000), 100, mode, {1000: (8, None)})


async def create_five_thousand(mode: Mode) -> list[Row]:
    """5,000 with 1,000 in flight, then all destroyed."""
    return await _there_and_back(mode.count(5000), 1000, mode, {5000: (40, 25)})


async def _there_and_back(
    count: int, clients: int, mode: Mode, goals: dict[int, tuple[float | None, float | None]]
) -> list[Row]:
    create_goal, destroy_goal = goals.get(count, (None, None))
    async with furnished(100) as cloud:
        done, costs = await _measured(cloud, f"create-{count}", count, closed(cloud.create, count, clients), mode)
        gone, gone_costs = await _measured(
            cloud, f"destroy-{count}", count, closed(cloud.destroy, count, clients), mode
        )
        memory = cloud.rig.server.megabytes()
    return [
        _row(f"create-{count}/seconds", done.seconds, "s", create_goal),
        _row(f"create-{count}/p99", done.percentile(0.99), "ms"),
        *costs,
        _row(f"destroy-{count}/seconds", gone.seconds, "s", destroy_goal),
        *gone_costs,
        _row(f"destroy-{count}/server-memory", memory, "MB"),
    ]


async def create_ten_thousand(mode: Mode) -> list[Row]:
    """10,000 by 100 clients: the last tenth must not be slower than the first."""
    count = mode.count(10_000)
    part = max(1, count // 10)
    async with furnished(200) as cloud:
        done, costs = await _measured(cloud, f"create-{count}", count, closed(cloud.create, count, 100), mode)
        memory = cloud.rig.server.megabytes()
    ends = sorted(done.ends)
    decline = (ends[-1] - ends[-1 - part]) / ends[part - 1]
    return [
        _row(f"create-{count}/seconds", done.seconds, "s", 90 if count == 10_000 else None),
        _row(f"create-{count}/last-to-first-{part}", decline, "times", 1.2),
        *costs,
        _row(f"create-{count}/server-memory", memory, "MB"),
    ]


async def where_time_goes(mode: Mode) -> list[Row]:
    """What part of the program runs while VMs are created and destroyed; a run of its own, as it costs time."""
    count, seconds = (500, 10) if mode.full else (100, 3)
    rows = []
    async with furnished() as cloud:
        for what, one in (("create", cloud.create), ("destroy", cloud.destroy)):
            profile = Profile(cloud.rig.server.pid, seconds, cloud.rig.directory / f"{what}.txt")
            await profile.start()
            (await closed(one, count, 50)).require()
            shares = await profile.shares()
            rows += [_row(f"{what}/{part}", share, "%", scenario=SPENT) for part, share in shares.items()]
    return rows


# --- clusters -------------------------------------------------------------------------------------------------------


async def clusters(mode: Mode) -> list[Row]:
    """The same load on an embedded node and on one, two and three nodes of a cluster; what each VM costs them."""
    count = mode.count(5000) if mode.full else 100
    rows: list[Row] = []
    embedded = 0.0
    for nodes in (0, 1, 2, 3) if mode.full else (0, 1, 3):
        found = await _on_nodes(nodes, count, mode)
        rows += found.rows
        embedded = embedded or found.processor
        if nodes:
            times = found.processor / embedded
            rows.append(_row(f"nodes-{nodes}-{count}/server-cpu-to-embedded", times, "times", 1.5, CLUSTERS))
    return rows


class _Found(NamedTuple):
    """What VMs cost on a number of nodes: rows, and the servers' processor seconds for each."""

    rows: list[Row]
    processor: float


async def _on_nodes(nodes: int, count: int, mode: Mode) -> _Found:
    """Create so many VMs on warm nodes. What the nodes use while nobody asks anything is a row of its own, and not
    part of a VM's cost."""
    name = f"nodes-{nodes or 'embedded'}-{count}"
    async with furnished(100 if mode.full else 10, nodes) as cloud:
        (await closed(cloud.create, 20 * max(1, nodes), 20)).require()
        idle, seconds = await _idle(cloud.rig, 20.0 if mode.full else 3.0)
        before, begun = await cloud.rig.usage(), time.perf_counter()
        profiler = _profiler(cloud.rig, mode, name)
        done = (await closed(cloud.create, count, min(count, 50 if mode.full else 20))).require()
        used, passed = (await cloud.rig.usage()).since(before), time.perf_counter() - begun
        if profiler is not None:
            await asyncio.to_thread(profiler.wait)
    processor = (used.server - idle.server / seconds * passed) / count
    rows = [
        _row(f"{name}/seconds", done.seconds, "s", scenario=CLUSTERS),
        _row(f"{name}/server-cpu", processor * 1000, "ms/op", scenario=CLUSTERS),
        _row(f"{name}/idle", idle.server / seconds, "cores", scenario=CLUSTERS),
        _row(f"{name}/statements", used.statements / count, "/op", scenario=CLUSTERS),
        _row(f"{name}/transactions", used.transactions / count, "/op", scenario=CLUSTERS),
    ]
    if nodes:
        rows += [
            _row(f"{name}/messages", used.messages / count, "/op", scenario=CLUSTERS),
            _row(f"{name}/database-and-broker-cpu", used.shared / count * 1000, "ms/op", scenario=CLUSTERS),
        ]
    return _Found(rows, processor)


async def _idle(rig: Rig, seconds: float) -> tuple[Usage, float]:
    """What is used in so many seconds while nobody asks anything, and how many they were."""
    before, begun = await rig.usage(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (await rig.usage()).since(before), time.perf_counter() - begun


async def bus_over_rabbitmq(mode: Mode) -> list[Row]:
    """Calls between two processes over a broker of their own."""
    rows = []
    async with bus.broker(None) as (url, pids):
        for found in await bus.over_rabbitmq(url, pids, [1, 64], 5.0 if mode.full else 2.0):
            name, goal = f"bus-rabbitmq-{found.concurrency}-at-a-time", bus.GOAL if found.concurrency > 1 else None
            rows += [
                _row(f"{name}/calls", found.calls_per_second, "/s", goal, CLUSTERS, at_least=True, simulated=False),
                _row(f"{name}/processor", found.processor, "µs/op", scenario=CLUSTERS, simulated=False),
            ]
    return rows


# --- lists ----------------------------------------------------------------------------------------------------------


async def lists(mode: Mode) -> list[Row]:
    """A page of 100 of 100,000 VMs."""
    return await _lists(mode.count(100_000), 50, 100 if mode.full else 40)


async def lists_of_a_million(mode: Mode) -> list[Row]:
    """A page of 100 of 1,000,000 VMs."""
    return await _lists(mode.count(1_000_000), 100, 100)


async def _lists(vms: int, goal: float, requests: int) -> list[Row]:
    async with Rig(1) as rig:
        made = await furnish(rig.api, rig.directory, rig.agent_port, addresses(1))
        tenant = Api(rig.api.address)
        account = await rig.api.call("CreateAccount", name="tenant", password=_hashed("secret"))
        for uuid in (made.vm["imageUuid"], made.vm["instanceOfferingUuid"], made.l3):
            await rig.api.call("ShareResource", resourceUuids=[uuid], accountUuids=[account["uuid"]])
        await tenant.login("tenant", "secret")
        vm = await tenant.call("CreateVmInstance", name="vm", **made.vm)
        # Running guests would have to be on the simulated host too.
        await tenant.call("StopVmInstance", uuid=vm["uuid"])
        await tenant.close()
        await rig.stop_server()
        filler = Filler(rig.directory / "server" / "caelum.db")
        filler.vms(vm["uuid"], vms)
        filler.close()
        await rig.start_server()
        await all_connected(rig.api, 1)  # what the server does at its start is not what is measured
        return await _ask(rig, vms, goal, requests, made.l3)


async def _ask(rig: Rig, vms: int, goal: float, requests: int, l3: str) -> list[Row]:
    tenant = Api(rig.api.address)
    await tenant.login("tenant", "secret")
    conditions = [f"vmNics.l3NetworkUuid={l3}", "state=Stopped"]

    async def page(number: int) -> None:
        start = number * 37 % 1000
        found = await tenant.call("QueryVmInstance", q=conditions, sort="+name", limit=100, start=start)
        assert len(found) == 100, len(found)

    await closed(page, 5, 1)
    before = await rig.usage()
    done = (await closed(page, requests, 1)).require()
    used = (await rig.usage()).since(before)
    await tenant.close()
    name = f"page-of-{vms}"
    return [
        _row(f"{name}/p50", done.percentile(0.5), "ms", scenario=LISTS),
        _row(f"{name}/p99", done.percentile(0.99), "ms", goal, LISTS),
        _row(f"{name}/server-cpu", used.server / requests * 1000, "ms/op", scenario=LISTS),
        _row(f"{name}/statements", used.statements / requests, "/op", scenario=LISTS),
    ]


def _hashed(password: str) -> str:
    import hashlib

    return hashlib.sha512(password.encode()).hexdigest()


# --- hosts ----------------------------------------------------------------------------------------------------------


async def many_hosts(mode: Mode) -> list[Row]:
    """Hosts that are connected and pinged; all connect again when the server is restarted."""
    count = mode.count(10_000) if mode.full else 300
    async with Rig(count) as rig:
        made = await furnish(rig.api, rig.directory, rig.agent_port, addresses(1))
        host = (await rig.api.call("QueryHost"))[0]
        await rig.stop_server()
        filler = Filler(rig.directory / "server" / "caelum.db")
        filler.hosts(host["uuid"], addresses(count)[1:])
        filler.close()
        await rig.start_server()
        await all_connected(rig.api, count)  # for the first time, which writes down what they are
        await rig.stop_server()
        await rig.start_server()
        return [*await _connect_again(rig, count), *await _idle_hosts(rig, made, count, mode)]


async def _connect_again(rig: Rig, count: int) -> list[Row]:
    before = await rig.usage()
    seconds = await all_connected(rig.api, count)
    used = (await rig.usage()).since(before)
    goal = 60 if count == 10_000 else None
    return [
        _row(f"hosts-{count}/connect-all", seconds, "s", goal, HOSTS),
        _row(f"hosts-{count}/connect-cpu", used.server / count * 1000, "ms/op", scenario=HOSTS),
        _row(f"hosts-{count}/connect-statements", used.statements / count, "/op", scenario=HOSTS),
        _row(f"hosts-{count}/connect-transactions", used.transactions / count, "/op", scenario=HOSTS),
    ]


async def all_connected(api: Api, count: int) -> float:
    """Wait until so many hosts have connected since the server's start; the seconds that it took."""
    begun = time.perf_counter()
    for _ in range(_PATIENCE):
        if (found := await connects(api)) >= count:
            return time.perf_counter() - begun
        await asyncio.sleep(1)
    raise RuntimeError(f"only {found} of {count} hosts are connected")


async def connects(api: Api) -> int:
    """Connects of hosts since the server's start. What it says of hosts before is as it was when it stopped."""
    lines = (await api.text("/metrics")).splitlines()
    found = [one for one in lines if one.startswith("caelum_call_seconds_count") and "ReportHostCapacity" in one]
    return int(float(found[0].split()[-1])) if found else 0


async def _idle_hosts(rig: Rig, made: Furniture, count: int, mode: Mode) -> list[Row]:
    await asyncio.sleep(10)
    before, begun = await rig.usage(), time.perf_counter()
    await asyncio.sleep(75 if mode.full else 30)
    used, passed = (await rig.usage()).since(before), time.perf_counter() - begun
    whole = count == 10_000
    name = f"hosts-{count}"
    rows = [
        _row(f"{name}/server-cores", used.server / passed, "cores", 0.5 if whole else None, HOSTS),
        _row(f"{name}/simulator-cores", used.simulator / passed, "cores", scenario=HOSTS),
        _row(f"{name}/server-memory", rig.server.megabytes(), "MB", 600 if whole else None, HOSTS),
        _row(f"{name}/simulator-memory", rig.simulator.megabytes(), "MB", scenario=HOSTS),
        _row(f"{name}/loop-lag-p99.9", used.lag(0.999), "ms", scenario=HOSTS),
    ]
    return [*rows, *await _placement(rig, made, count, 200 if mode.full else 50)]


async def _placement(rig: Rig, made: Furniture, count: int, vms: int) -> list[Row]:
    """The allocator's own time in creations, as the server counts it, and their latency."""
    cloud = Cloud(rig, made)
    await closed(cloud.create, 3, 1)
    before = await _allocations(rig)
    done = (await closed(cloud.create, vms, 1)).require()
    took = [after - old for after, old in zip(await _allocations(rig), before, strict=True)]
    name = f"hosts-{count}"
    return [
        _row(f"{name}/placement-mean", took.pop() / vms * 1000, "ms", scenario=HOSTS),
        _row(f"{name}/placement-p99", _quantile(0.99, took) * 1000, "ms", 5, HOSTS),
        _row(f"{name}/create-p50", done.percentile(0.5), "ms", scenario=HOSTS),
    ]


async def _allocations(rig: Rig) -> list[float]:
    """How many allocations took at most each of the bounds, and how long all took."""
    mine = (one for one in samples(await rig.api.text("/metrics")) if 'message="AllocateHost"' in one[1])
    found = [value for name, _, value in mine if name in ("caelum_call_seconds_bucket", "caelum_call_seconds_sum")]
    return found or [0.0] * (len(BUCKETS) + 2)


def _quantile(share: float, counts: list[float]) -> float:
    """What this share of the calls did not exceed, between two bounds as if they were spread evenly there."""
    wanted, bounds = share * counts[-1], (0.0, *BUCKETS)
    for at, (count, less) in enumerate(zip(counts, [0.0, *counts], strict=False)):
        if count >= wanted and at < len(BUCKETS):
            return bounds[at] + (bounds[at + 1] - bounds[at]) * (wanted - less) / max(1.0, count - less)
    return bounds[-1]


async def tasks_in_flight(mode: Mode) -> list[Row]:
    """API tasks whose agents answer late: all succeed, and the loop stays quick."""
    count, delay = (mode.count(10_000), 30.0) if mode.full else (100, 5.0)
    async with furnished(200 if mode.full else _FEW_HOSTS) as cloud:
        import aiohttp

        url = f"http://127.0.0.1:{cloud.rig.control_port}/latencies"
        slow = [{"path": "/vm/start", "kind": "fixed", "low": delay}]
        async with aiohttp.ClientSession() as http, http.put(url, json=slow) as answer:
            assert answer.status == 200, await answer.text()
        what = f"in-flight-{count}"
        done, costs = await _measured(cloud, what, count, closed(cloud.create, count, count), mode)
        memory = cloud.rig.server.megabytes("VmHWM")
    whole = count == 10_000
    return [
        _row(f"{what}/seconds", done.seconds, "s", scenario=HOSTS),
        _row(f"{what}/server-memory", memory, "MB", 1024 if whole else None, HOSTS),
        *(_row(one.id, one.value, one.unit, 50 if "lag-p99" in one.id else None, HOSTS) for one in costs),
    ]


# --- start ----------------------------------------------------------------------------------------------------------


async def starts(mode: Mode) -> list[Row]:
    """A server of its own, until it is ready, and the command line's help."""
    measured = await asyncio.to_thread(startup.measure, 5 if mode.full else 3)
    again, helped = measured["start"], measured["caelum --help"]
    return [
        _row("start/ready", again["seconds"], "s", 2, START, simulated=False),
        _row("start/server-cpu", again["processor"], "s", scenario=START, simulated=False),
        _row("start/memory", again["megabytes"], "MB", 120, START, simulated=False),
        _row("help/seconds", helped["seconds"] * 1000, "ms", 120, START, simulated=False),
        _row("help/cpu", helped["processor"] * 1000, "ms", scenario=START, simulated=False),
    ]


async def parts(_mode: Mode) -> list[Row]:
    """Small parts alone."""
    return await micro.measure()


SCENARIOS = [
    Scenario("start", starts, True),
    Scenario("parts", parts, True),
    Scenario("create-one", create_one, True),
    Scenario("create-steadily", create_steadily, True),
    Scenario("create-at-once", create_at_once, True),
    Scenario("spent", where_time_goes, True),
    Scenario("in-flight", tasks_in_flight, True, 3600),
    Scenario("hosts", many_hosts, True, 3600),
    Scenario("lists", lists, True),
    Scenario("bus", bus_over_rabbitmq, True),
    Scenario("clusters", clusters, True, 2400),
    Scenario("create-thousand", create_thousand, False),
    Scenario("create-five-thousand", create_five_thousand, False, 1200),
    Scenario("create-ten-thousand", create_ten_thousand, False, 1800),
    Scenario("lists-million", lists_of_a_million, False, 1200),
]
