"""Strategies on `Run` that are killed at random instants, and run again until they end: as without a kill."""

import asyncio
import json
import random
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import Container, Mode, Registry, Settings
from tests.support.processes import CLI_PROGRAM, settings_environment, start_python

EXAMPLES = ("docs/examples/survive.py", "docs/examples/survive_basana.py")
KILLS = [pytest.param(2), pytest.param(67, marks=pytest.mark.soak)]


@dataclass
class Program:
    """A strategy that prints a line when it begins or goes on, and its result at the end."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    async def start(self) -> asyncio.subprocess.Process:
        """Start it, and return when it is about to begin or to go on."""
        process = await start_python(
            *self.arguments, environment=self.environment, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
        )
        assert process.stdout is not None
        assert await process.stdout.readline(), "it ended before"
        return process

    async def run(self) -> str:
        """Run it to its end; returns its result."""
        process = await self.start()
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def run_killed(self, chance: random.Random, kills: int, seconds: float) -> tuple[str, int]:
        """Run it to its end, and kill some processes on the way; returns its result, and how many were killed."""
        for killed in range(kills):
            process = await self.start()
            await asyncio.sleep(chance.uniform(0, seconds))
            if process.returncode is None:
                process.kill()
            output, _ = await process.communicate()
            if process.returncode == 0:
                return output.decode(), killed
        return await self.run(), kills


class Places:
    """Gives empty directories or databases."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.uri = settings.mongo_connection_string.get_secret_value()
        self.settings = settings
        self.directory = directory
        self.count = 0

    def next_directory(self) -> Path:
        """Return a directory that is not there yet."""
        self.count += 1
        return self.directory / str(self.count)

    async def emptied(self) -> Mapping[str, str]:
        """Drop the database of the test; returns the environment of a process that uses it."""
        async with AsyncMongoClient[dict[str, Any]](self.uri) as client:
            await client.drop_database(client.get_default_database().name)
        return settings_environment(self.settings)


async def state_of(registry: Registry) -> list[Any]:
    """Return what the strategy of the example has stored."""
    context = "BTCUSDT", "cross", "binance"
    session = await registry.session("cross", "binance", "january", "BTCUSDT", Mode.BACKTEST)
    return [
        await (await registry.signal(*context)).read_signal_data(),
        await (await registry.storage(Mode.BACKTEST)).read_storage_data(),
        await (await registry.log()).read_log_data(),
        await session.read_session_data(),
    ]


@pytest.fixture(scope="module")
async def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """What the example prints and stores without a kill, in files."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    printed = await Program((EXAMPLES[0], str(directory))).run()
    registry = Registry()
    registry.use_json(directory)
    assert "2000 bars, 35 trades" in printed
    return printed, await state_of(registry)


@pytest.mark.parametrize("kills", KILLS)
async def test_the_example_on_mongodb(
    expected: tuple[str, list[Any]], settings: Settings, container: Container, tmp_path: Path, kills: int
) -> None:
    """The sixty-line strategy, killed at random instants, ends with the same trades, log, session and balance."""
    chance, places = random.Random(kills), Places(settings, tmp_path)
    left = kills
    while left > 0:
        program = Program((EXAMPLES[0],), await places.emptied())
        printed, killed = await program.run_killed(chance, min(left, 5), seconds=0.6)
        assert (printed, await state_of(Registry(container))) == expected
        left -= killed


@pytest.mark.parametrize(
    ("example", "kills"),
    [(EXAMPLES[1], 1), *(pytest.param(example, 34, marks=pytest.mark.soak) for example in EXAMPLES)],
)
async def test_the_example_on_json_files(
    expected: tuple[str, list[Any]], tmp_path: Path, example: str, kills: int
) -> None:
    """In files as well, and called by basana."""
    chance, directories = random.Random(kills), tmp_path
    left = kills
    while left > 0:
        directory = directories / str(left)
        printed, killed = await Program((example, str(directory))).run_killed(chance, min(left, 5), seconds=0.6)
        registry = Registry()
        registry.use_json(directory)
        assert (printed, await state_of(registry)) == expected
        left -= killed


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a demo without what depends on its processes."""
    counts = {name: domain.get("documents", domain.get("files")) for name, domain in result["domains"].items()}
    return {"counts": counts, **{name: result[name] for name in ("bars", "balance", "trades")}}


def demo(*arguments: str) -> tuple[str, ...]:
    """The arguments of a process that runs the first bars of the demo, and kills nobody."""
    return ("-c", CLI_PROGRAM, "demo", "--bars", "450", "--kill-after", "0", "--json", *arguments)


def result_in(output: str) -> dict[str, Any]:
    """The result among what a demo has printed."""
    return json.loads(output[output.index("{\n") :])


@pytest.mark.soak
@pytest.mark.parametrize("kills", [100])
async def test_the_demo(settings: Settings, tmp_path: Path, kills: int) -> None:
    """The demo, killed at random instants, ends with the same trades, balance and number of documents."""
    chance, places = random.Random(kills), Places(settings, tmp_path)
    uninterrupted = Program(demo("--backend", "json", "--data-dir", str(places.next_directory())))
    expected = comparable(result_in(await uninterrupted.run()))
    left = kills
    while left > 0:
        on_files = chance.random() < 1 / 3
        arguments = ("--backend", "json", "--data-dir", str(places.next_directory())) if on_files else ()
        program = Program(demo(*(arguments or ("--servers", "env"))), await places.emptied())
        output, killed = await program.run_killed(chance, min(left, 5), seconds=0.4)
        assert comparable(result_in(output)) == expected
        left -= killed
