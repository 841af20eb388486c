"""The simulator's own HTTP interface: look at the hosts, break them, mend them. It has nothing to do with the server.

GET    /hosts                         addresses, UUIDs, what came and what was done
GET    /dump  /dump/{uuid}            what the hosts hold
GET    /tasks                         commands under way: host, task UUID, path, where the answer goes
GET    /faults, PUT /faults [..], POST /faults {..}, DELETE /faults
PUT    /latencies [..]
PUT    /cut [{"server": uuid, "callback": "https://127.0.0.1:8444/"}]      the management nodes that hosts do not reach
POST   /hosts/{uuid}/die | revive | power-off
POST   /hosts/{uuid}/vms/{vm} {"state": "Stopped"}     a guest changes by itself
POST   /copies {"vm": .., "hosts": {host: [vm, ..]}}    guests like an existing one, on hosts with its host's storages
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from caelum.simulator.faults import Cut, Fault, Latency
from caelum.simulator.host import SimulatedHost
from caelum.simulator.hosts import SimulatedHosts


class Copies(msgspec.Struct):
    """Guests like `vm`, by host."""

    vm: str
    hosts: dict[str, list[str]]


class Control:
    """The interface's handlers."""

    def __init__(self, hosts: SimulatedHosts) -> None:
        self._hosts = hosts

    def application(self) -> web.Application:
        """The application to serve."""
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/hosts", self._list),
                web.get("/dump", self._dump),
                web.get("/dump/{uuid}", self._dump),
                web.get("/tasks", self._tasks),
                web.get("/faults", self._faults),
                web.put("/faults", self._set_faults),
                web.post("/faults", self._add_fault),
                web.delete("/faults", self._heal),
                web.put("/latencies", self._set_latencies),
                web.put("/cut", self._cut),
                web.post("/copies", self._copy),
                web.post("/hosts/{uuid}/vms/{vm}", self._guest),
                web.post("/hosts/{uuid}/{action}", self._act),
            ]
        )
        return app

    async def _list(self, _: web.Request) -> web.Response:
        return _json([_summary(host) for host in self._hosts.hosts])

    async def _dump(self, request: web.Request) -> web.Response:
        uuid = request.match_info.get("uuid")
        return _json(self._hosts.dump() if uuid is None else self._host(request).world.dump())

    async def _tasks(self, _: web.Request) -> web.Response:
        return _json(
            [
                {"host": host.uuid, "task": task.uuid, "path": task.path, "callback": task.callback}
                for host in self._hosts.hosts
                for task in host.journal.under_way()
            ]
        )

    async def _faults(self, _: web.Request) -> web.Response:
        return _json(self._hosts.behaviour.faults)

    async def _set_faults(self, request: web.Request) -> web.Response:
        self._hosts.behaviour.faults = await _read(request, list[Fault])
        return await self._faults(request)

    async def _add_fault(self, request: web.Request) -> web.Response:
        self._hosts.behaviour.add(await _read(request, Fault))
        return await self._faults(request)

    async def _heal(self, request: web.Request) -> web.Response:
        self._hosts.heal()
        return await self._faults(request)

    async def _set_latencies(self, request: web.Request) -> web.Response:
        self._hosts.behaviour.latencies = await _read(request, list[Latency])
        return _json(self._hosts.behaviour.latencies)

    async def _cut(self, request: web.Request) -> web.Response:
        self._hosts.behaviour.cuts = await _read(request, list[Cut])
        for host in self._hosts.hosts:
            host.drop_cut()
        return _json(self._hosts.behaviour.cuts)

    async def _act(self, request: web.Request) -> web.Response:
        host = self._host(request)
        match request.match_info["action"]:
            case "die":
                await host.die()
            case "revive":
                await host.revive()
            case "power-off":
                await host.power_off()
            case action:
                raise web.HTTPNotFound(text=f"no action {action}")
        return _json(_summary(host))

    async def _guest(self, request: web.Request) -> web.Response:
        host, vm_uuid = self._host(request), request.match_info["vm"]
        if vm_uuid not in host.world.vms:
            raise web.HTTPNotFound(text=f"no guest {vm_uuid} on host {host.uuid}")
        host.guest_changes(vm_uuid, (await _read(request, dict[str, str])).get("state", "Stopped"))
        return _json(host.world.states())

    async def _copy(self, request: web.Request) -> web.Response:
        wanted = await _read(request, Copies)
        origin = next((host.world for host in self._hosts.hosts if wanted.vm in host.world.vms), None)
        if origin is None or not wanted.hosts.keys() <= {host.uuid for host in self._hosts.hosts}:
            raise web.HTTPNotFound(text=f"no guest {wanted.vm}, or not all of the hosts")
        guest = origin.vms[wanted.vm]
        for host_uuid, vm_uuids in wanted.hosts.items():
            world = self._hosts.by_uuid(host_uuid).world
            world.storages.update(origin.storages)
            for vm_uuid in vm_uuids:
                definition = msgspec.structs.replace(guest.definition, vm_uuid=vm_uuid, disks=[], nics=[])
                world.vms[vm_uuid] = msgspec.structs.replace(guest, definition=definition)
        return _json({})

    def _host(self, request: web.Request) -> SimulatedHost:
        try:
            return self._hosts.by_uuid(request.match_info["uuid"])
        except KeyError:
            raise web.HTTPNotFound(text=f"no host {request.match_info['uuid']}") from None


def _summary(host: SimulatedHost) -> dict[str, Any]:
    return {
        "uuid": host.uuid,
        "ip": host.ip,
        "port": host.port,
        "alive": host.alive,
        "vms": len(host.world.vms),
        "running": host.journal.running(),
        "arrived": dict(host.arrived),
        "done": dict(host.done),
    }


def _json(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _read(request: web.Request, kind: Any) -> Any:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
