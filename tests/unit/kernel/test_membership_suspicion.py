"""Which silent nodes are evicted: those that this node saw unchanged, however seldom it came to look."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.kernel.bakery import BakeryService

from caelum.kernel.membership import Membership
from caelum.testing.cloud import EmbeddedCloud

BEAT = datetime(2026, 1, 1)


async def evicted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[float], speaks: float | None = None
) -> float | None:
    """When another node that is silent (but for one heartbeat) is evicted, by a node that looks at these seconds."""
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        mine = Membership(cloud.node)
        evicted: list[str] = []

        async def evict(uuid: str, _beat: datetime) -> None:
            evicted.append(uuid)

        monkeypatch.setattr(mine, "_evict", evict)
        for now in looks:
            monkeypatch.setattr(mine.lease, "now", lambda now=now: 1000 + now)
            beat = BEAT if speaks is None or now < speaks else BEAT.replace(hour=1)
            mine._suspect([SimpleNamespace(uuid="other", heart_beat=beat, old=now >= 5 and beat == BEAT)])
            if mine._evictions:
                await mine._evictions["other"]
                return now
    return None


async def test_a_silent_node_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await evicted_at(tmp_path, monkeypatch, [0, 1, 2, 3, 4, 5, 6]) == 5


async def test_a_busy_node_evicts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await evicted_at(tmp_path, monkeypatch, [0, 2.4, 4.9, 7.3, 9.8]) == 7.3


async def test_everybody_may_speak_first_when_the_database_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await evicted_at(tmp_path, monkeypatch, [0, 60, 61, 62, 63, 64]) == 63
    assert await evicted_at(tmp_path / "b", monkeypatch, [0, 60, 61, 62, 63, 64], speaks=62) is None
