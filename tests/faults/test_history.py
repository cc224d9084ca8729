"""Several processes on one pair of servers that stop, die and drop connections: what they saw is always explained."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import embedded
from tests.support.fail_points import TEST_COMMANDS
from tests.support.history import Event, read_events, violations
from tests.support.processes import start_python
from tests.support.servers import PrivateRedis, suspended


async def disturb(redis: PrivateRedis, mongo: AsyncMongoClient[dict[str, Any]], choice: random.Random) -> str:
    """Do one thing to the servers; returns its name."""
    fault = choice.choice(["redis flushed", "redis killed", "redis stopped", "mongod stopped", "connections closed"])
    match fault:
        case "redis flushed":
            await redis.flush()
        case "redis killed":
            await redis.kill()
            await asyncio.sleep(choice.random() * 0.3)
            await redis.start()
        case "redis stopped":
            async with suspended(redis.pid):
                await asyncio.sleep(0.2)
        case "mongod stopped":
            async with suspended((await mongo.admin.command("serverStatus"))["pid"]):
                await asyncio.sleep(0.3)
        case _:
            await mongo.admin.command(
                {
                    "configureFailPoint": "failCommand",
                    "mode": {"times": choice.randrange(1, 4)},
                    "data": {
                        "failCommands": ["findAndModify", "find", "update"],
                        "appName": "clients",
                        "closeConnection": True,
                    },
                }
            )
    return fault


async def run(directory: Path, driver: str, *, processes: int, seconds: float) -> tuple[list[Event], Counter[str]]:
    """Let processes work while faults happen at random; returns their history and the faults."""
    choice = random.Random(f"{driver} {processes} {seconds}")
    faults: Counter[str] = Counter()
    redis = PrivateRedis(directory)
    await redis.start()
    try:
        async with embedded(mongod_options=TEST_COMMANDS) as settings:
            uri = settings.mongo_connection_string.get_secret_value()
            environment = {
                "CC_MONGO_CONNECTION_STRING": f"{uri}&appName=clients&heartbeatFrequencyMS=500",
                "CC_MONGO_DRIVER": driver,
                "CC_REDIS_URL": f"unix://{redis.socket}",
            }
            files = [directory / f"{number}.jsonl" for number in range(processes)]
            children = [
                await start_python(
                    *("-m", "tests.support.history", str(file), file.stem, str(seconds)), environment=environment
                )
                for file in files
            ]
            working = asyncio.gather(*(child.wait() for child in children))
            async with AsyncMongoClient[dict[str, Any]](uri) as mongo:
                while not working.done():
                    await asyncio.wait([working], timeout=choice.random() * 0.5)
                    if not working.done():
                        faults[await disturb(redis, mongo, choice)] += 1
            assert await working == [0] * processes
            return read_events(files), faults
    finally:
        await redis.kill()


def check(events: list[Event], faults: Counter[str], *, least: int) -> None:
    counts = Counter(f"{event.kind} {event.outcome}" for event in events)
    print(dict(counts), dict(faults))
    assert min(counts["write ok"], counts["read ok"]) > least, counts
    assert counts["write unknown"] > least / 100
    assert len(faults) >= 3
    assert violations(events) == []


async def test_a_short_history(tmp_path: Path, driver: str) -> None:
    """Two processes for five seconds."""
    check(*await run(tmp_path, driver, processes=2, seconds=5), least=20)


@pytest.mark.soak
async def test_a_long_history(tmp_path: Path, driver: str) -> None:
    """Four processes for a minute."""
    check(*await run(tmp_path, driver, processes=4, seconds=60), least=5000)


def _write(value: str, began: float, ended: float, client: str = "a", outcome: Any = "ok") -> Event:
    return Event(client, "write", "k", value, began, ended, outcome)


def _read(value: str | None, began: float, ended: float, client: str = "r") -> Event:
    return Event(client, "read", "k", value, began, ended)


RIGHT: dict[str, list[Event]] = {
    "one after the other": [
        _read(None, 0, 1),
        _write("1", 2, 3),
        _read("1", 4, 5),
        _write("2", 6, 7),
        _read("2", 8, 9),
    ],
    "a read during a write sees either": [_write("1", 0, 1), _write("2", 2, 9), _read("1", 3, 4), _read("2", 5, 6)],
    "concurrent writes in either order": [_write("1", 0, 5), _write("2", 0, 5, "b"), _read("1", 6, 7)],
    "an unknown write may be there or not": [_write("1", 0, 1), _write("2", 2, 3, "b", "unknown"), _read("1", 4, 5)],
    "an unknown write may come late": [
        *(_write("1", 0, 1), _write("2", 2, 3, "b", "unknown"), _read("1", 4, 5), _read("2", 6, 7)),
    ],
}
WRONG: dict[str, list[Event]] = {
    "an acknowledged write is not there": [_write("1", 0, 1), _read(None, 2, 3)],
    "an older value after a newer one": [_write("1", 0, 1), _write("2", 2, 3), _read("1", 4, 5)],
    "versions go back": [_write("1", 0, 1), _write("2", 2, 9, "b"), _read("2", 3, 4), _read("1", 5, 6)],
    "a value comes again": [
        _write("1", 0, 9),
        _write("2", 0, 9, "b"),
        _read("1", 1, 2),
        _read("2", 3, 4),
        _read("1", 5, 6),
    ],
    "a value from nowhere": [_read("1", 0, 1)],
    "a value before its write": [_write("1", 2, 3), _read("1", 0, 1)],
    "what was refused is there": [_write("1", 0, 1, "a", "refused"), _read("1", 2, 3)],
    "a cancelled write comes last": [_write("1", 0, 1, "a", "unknown"), _write("2", 2, 3), _read("1", 4, 5)],
}


@pytest.mark.parametrize("events", RIGHT.values(), ids=RIGHT)
def test_the_checker_accepts(events: list[Event]) -> None:
    """Histories that a register can have."""
    assert violations(events) == []


@pytest.mark.parametrize("events", WRONG.values(), ids=WRONG)
def test_the_checker_finds(events: list[Event]) -> None:
    """Histories that it cannot have."""
    assert violations(events) != []
