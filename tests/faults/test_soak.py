"""Work that goes on for long leaves nothing behind."""

import asyncio
import gc
import os
import resource
import time
from itertools import count
from pathlib import Path

import pytest

from backtest_persist import Container, Settings
from tests.faults.stopwatch import timed

SECONDS = float(os.environ.get("CC_TEST_SOAK_SECONDS", "600"))
WARM_UP = 0.25
"""Part of the time after which memory has its size."""


def _memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.soak
async def test_memory_sockets_and_tasks_stay_flat(settings: Settings) -> None:
    """New keys without end, each written, read, listed and missed: less than 1 MB a minute, and nothing is left."""
    tasks, files = len(asyncio.all_tasks()), _files()
    container = Container(settings)
    db, memories, storage = container.signal_db_service, container.memory_db_service, container.storage_db_service
    numbers = count()
    began = time.monotonic()
    longest = 0.0

    async def work() -> None:
        nonlocal longest
        while time.monotonic() - began < SECONDS:
            n = next(numbers)
            row, wrote = await timed(db.upsert("s", "t", f"e{n}", {"n": n}))
            found, read = await timed(db.find_by_context("s", "t", f"e{n}"))
            assert found == row
            assert await db.find_by_context("s", "t", f"missing{n}") is None
            await memories.upsert("s", f"b{n}", "m", {"n": n}, n)
            assert [row.payload for row in await memories.list_entries("s", f"b{n}")] == [{"n": n}]
            await storage.upsert_many(True, [{"id": f"{n}-{part}"} for part in range(3)])
            longest = max(longest, wrote, read)

    async def measure() -> list[tuple[float, float, int, int]]:
        await asyncio.sleep(SECONDS * WARM_UP)
        seen: list[tuple[float, float, int, int]] = []
        while time.monotonic() - began < SECONDS:
            gc.collect()
            seen.append(((time.monotonic() - began) / 60, _memory(), _files(), len(asyncio.all_tasks())))
            await asyncio.sleep(SECONDS / 40)
        return seen

    measuring = asyncio.create_task(measure())
    await asyncio.gather(*(work() for _ in range(16)))
    seen = await measuring
    third = len(seen) // 3
    minutes = seen[-1][0] - seen[0][0]
    grown = min(memory for _, memory, *_ in seen[-third:]) - max(memory for _, memory, *_ in seen[:third])
    print(f"{next(numbers)} keys, {grown / minutes:.2f} MB a minute, {seen[0]} to {seen[-1]}, longest {longest:.3f} s")
    assert grown / minutes < 1
    assert max(files for *_, files, _ in seen[-third:]) <= max(files for *_, files, _ in seen[:third]) + 4
    assert max(tasks for *_, tasks in seen[-third:]) <= max(tasks for *_, tasks in seen[:third]) + 2
    assert longest < 30.25
    await container.close()
    gc.collect()
    assert len(asyncio.all_tasks()) <= tasks
    async with asyncio.timeout(20):
        while _files() > files + 2:  # Motor's threads keep a pipe each
            await asyncio.sleep(0.05)
