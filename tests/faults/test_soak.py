"""Long work: it leaves no memory, task or file descriptor behind."""

import asyncio
import gc
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidKeyError, Settings
from backtest_persist.core import write_queue
from backtest_persist.core.batching import Batcher
from backtest_persist.testing.subjects import START, candle
from tests.support.stopwatch import HANG, timed

TASKS = 16
ROUND = 100
"""Keys of one round; nothing is under way between rounds."""
ROUNDS = 8
WARM_UP = 0.25
"""Part of the time after which memory has its size."""
SECONDS = float(os.environ.get("CC_TEST_SOAK_SECONDS", "600"))
STORED = int(os.environ.get("CC_TEST_SOAK_KEYS", "1000000"))


@pytest.fixture(autouse=True)
def full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the contexts that a write queue keeps in mind be as many as they may be after the first round."""
    monkeypatch.setattr(write_queue, "_MAX_SOUND", ROUND)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Small pools, which are full after the first keys."""
    return settings.model_copy(update={"mongo_max_pool_size": 6, "redis_max_connections": 6})


@dataclass(frozen=True)
class Snapshot:
    """The resources of this process between two rounds."""

    keys: int
    seconds: float = field(default_factory=time.monotonic)
    blocks: int = field(default_factory=sys.getallocatedblocks)
    """Blocks of memory for Python objects; each leak takes one at least."""
    memory: float = field(default_factory=lambda: _resident() * resource.getpagesize() / 1e6)
    """MB."""
    files: int = field(default_factory=lambda: len(os.listdir("/proc/self/fd")))
    tasks: int = field(default_factory=lambda: len(asyncio.all_tasks()))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def held(container: Container) -> dict[str, int]:
    """Count what is in the sets and maps of a container that work fills and empties."""
    mongo, redis = container.mongo_service._states.get(), container.redis_service._states.get()
    drainables: list[Any] = list(mongo._drainables.values())
    batchers: list[Batcher[Any, Any]] = [part for each in drainables for part in (each.lookup, each.writes)]
    return {
        "services": len(mongo._drainables),
        "preparing": len(mongo._preparing),
        "under way in MongoDB": mongo._calls,
        "pending": sum(len(each._pending) for each in batchers),
        "in flight": sum(len(each._in_flight) for each in batchers),
        "limits": len(mongo._timer._limits) + len(redis._timer._limits),
    }


HELD = {"services": 4, "preparing": 0, "under way in MongoDB": 0, "pending": 0, "in flight": 0, "limits": 0}
"""Of the four services that are used."""


class Work:
    """Tasks that write, read, list and miss new keys, read what was stored before, are refused, and leave early."""

    def __init__(self, container: Container, stored: int) -> None:
        self._container = container
        self._stored = stored
        self.keys = 0
        self.longest = 0.0

    async def prepare(self) -> None:
        """Store candles, and their ids in Redis."""
        candles = self._container.candle_db_service
        for first in range(0, self._stored, 20_000):
            last = min(first + 20_000, self._stored)
            series = [candle(number) for number in range(first, last)]
            assert await candles.create_many("s", "1m", "e", series) == len(series)
        assert await self._container.candle_cache_service.size() == await candles.count() == self._stored

    async def round(self) -> Snapshot:
        """Work through new keys, and look at what is left."""
        until = self.keys + ROUND

        async def work() -> None:
            while self.keys < until:
                self.keys += 1
                await self._operations(self.keys)

        await asyncio.gather(*(work() for _ in range(TASKS)))
        await asyncio.sleep(0)
        gc.collect()
        return Snapshot(self.keys)

    async def _operations(self, n: int) -> None:
        db, memories = self._container.signal_db_service, self._container.memory_db_service
        candles, storage = self._container.candle_db_service, self._container.storage_db_service
        row, wrote = await timed(db.upsert("s", "t", f"e{n}", {"n": n}))
        found, read = await timed(db.find_by_context("s", "t", f"e{n}"))
        self.longest = max(self.longest, wrote, read)
        assert found == row
        assert await db.find_by_context("s", "t", f"missing{n}") is None
        await memories.upsert("s", f"b{n}", "m", {"n": n}, -n)
        assert [row.payload for row in await memories.list_entries("s", f"b{n}")] == [{"n": n}]
        await storage.upsert_many(True, [{"id": f"{n}-{part}"} for part in range(3)])
        opened = START + n * 7919 % self._stored * 60_000
        stored = await candles.find_by_context("s", "1m", "e", opened)
        assert stored is not None
        assert stored.timestamp == opened
        with pytest.raises(InvalidKeyError):
            await db.upsert("s", "t", "", {"n": n})
        leaving = [
            asyncio.create_task(call)
            for call in (db.find_by_context("s", "t", f"left{n}"), db.upsert("s", "t", f"left{n}", {"n": n}))
        ]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)


async def check_flat(settings: Settings, *, stored: int, seconds: float) -> list[Snapshot]:
    """Work for so long, some rounds at least; returns what was seen after the first quarter of it.

    The ids that the process keeps are few, so that it has as many as it may from the first round on.
    """
    settings = settings.model_copy(update={"id_memory": 100})
    gc.collect()
    before = Snapshot(0)
    async with Container(settings) as container:
        work = Work(container, stored)
        await work.prepare()
        seen = [await work.round()]
        since = seen[0].seconds
        while seen[-1].seconds < since + seconds or len(seen) < ROUNDS:
            seen.append(await work.round())
            assert held(container) == HELD
    seen = [one for one in seen if one.seconds >= since + (seen[-1].seconds - since) * WARM_UP]
    grown = [(later.blocks - earlier.blocks) / ROUND for earlier, later in pairwise(seen)]
    print(f"{work.keys} keys, {min(grown):.2f} to {max(grown):.2f} blocks a key, longest {work.longest:.3f} s")
    assert min(grown) < 0.5  # what the drivers take now and then has nothing to do with keys
    assert seen[-1].tasks <= seen[0].tasks + 1, asyncio.all_tasks()
    assert seen[-1].files <= seen[0].files + 4
    assert work.longest < settings.mongo_timeout_ms / 1000 + 0.25
    del container, work
    gc.collect()
    assert len(asyncio.all_tasks()) <= before.tasks
    async with asyncio.timeout(HANG):
        while Snapshot(0).files > before.files + 2:  # Motor's threads keep a pipe each
            await asyncio.sleep(0.05)
    return seen


async def test_nothing_grows_with_the_number_of_keys(settings: Settings) -> None:
    """Each key is new: memory, sockets and tasks are what they were hundreds of keys before."""
    await check_flat(settings, stored=2_000, seconds=0)


@pytest.mark.soak
async def test_memory_stays_flat_for_long(settings: Settings) -> None:
    """With a million keys stored before: less than 1 MB a minute."""
    seen = await check_flat(settings, stored=STORED, seconds=SECONDS)
    third = len(seen) // 3
    grown = min(one.memory for one in seen[-third:]) - max(one.memory for one in seen[:third])
    minutes = (seen[-1].seconds - seen[0].seconds) / 60
    blocks = (seen[-1].blocks - seen[0].blocks) / (seen[-1].keys - seen[0].keys)
    print(f"{grown / minutes:.2f} MB a minute, {blocks:.3f} blocks a key, {seen[0]} to {seen[-1]}")
    assert grown / minutes < 1
    assert blocks < 0.1
