"""The demo: fifteen domains in use, and a run that was cut anywhere ends like one that was not."""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("basana")
pytest.importorskip("bokeh_sampledata")

from bson import ObjectId

from backtest_persist import Container, Mode, Registry, Settings, embedded
from backtest_persist.cli.demo import replay
from backtest_persist.cli.demo.bars import load
from backtest_persist.cli.demo.strategy import Signal, SmaCross

ROOT = Path(__file__).parents[2]
BARS = 450
"""Enough of AAPL for an entry that expires, limit and market entries, a stop, a breakeven stop and an open end."""

Documents = dict[str, list[dict[str, Any]]]


class Outcome:
    """What a demo process printed and how it ended."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.errors
        return json.loads(self.output)


async def start(*arguments: str, prelude: str = "", **environment: str) -> asyncio.subprocess.Process:
    """Start the console script's entry point in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"{prelude}\nfrom backtest_persist.cli import main; main()", *arguments),
        cwd=ROOT,
        env={**os.environ, "CC_REDIS_TIMEOUT_MS": "5000", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str, prelude: str = "", **environment: str) -> Outcome:
    """Run the console script's entry point to its end."""
    process = await start(*arguments, prelude=prelude, **environment)
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, output.decode(), errors.decode())


async def dump(container: Container) -> Documents:
    """All documents as they are stored, without what no two runs share."""
    documents: Documents = {}
    for service in container.db_services:
        found = [document async for document in container.mongo_service.collection(service.collection).find({})]
        for document in found:
            assert isinstance(document.pop("_id"), ObjectId)
            del document["createDate"], document["updatedDate"]
        documents[service.collection] = sorted(found, key=repr)
    return documents


async def dump_directory(data_dir: Path) -> Documents:
    async with embedded(data_dir) as settings, Container(settings) as container:
        return await dump(container)


@asynccontextmanager
async def fresh(servers: Settings) -> AsyncIterator[Container]:
    """A container on a database and a Redis prefix of its own."""
    name = f"demo-{uuid4().hex[:12]}"
    update: dict[str, Any] = {"redis_key_prefix": f"{name}:", "redis_timeout_ms": 5_000, "mongo_timeout_ms": 30_000}
    uri = servers.mongo_connection_string.get_secret_value()
    update["mongo_connection_string"] = uri.replace(f"/{uri.rpartition('/')[2].partition('?')[0]}", f"/{name}")
    async with Container(Settings(**{**servers.model_dump(), **update})) as container:
        try:
            yield container
        finally:
            await container.mongo_service.client.drop_database(name)
            for service in ("candle", "signal"):
                await getattr(container, f"{service}_cache_service").clear()


async def run_here(container: Container, mode: Mode = Mode.BACKTEST, bars: int = BARS) -> SmaCross:
    """Run the strategy in this process, from wherever the session is."""
    sample = load("AAPL")
    strategy = SmaCross(Registry(container), mode, sample.pair, sample.frame)
    await strategy.restore()
    await replay(strategy, container, sample, bars)
    return strategy


@pytest.fixture(scope="module")
async def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Documents]:
    """The result and the documents of a run that nothing cut."""
    data_dir = tmp_path_factory.mktemp("uninterrupted")
    outcome = await run("demo", "--bars", str(BARS), "--json", "--data-dir", str(data_dir))
    return outcome.result, await dump_directory(data_dir)


def kinds(documents: Documents) -> list[str]:
    return [document["payload"]["kind"] for document in documents["log-items"]]


def same(result: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results agree in all but what depends on the process: reads, writes, time."""
    counts = [{name: domain["documents"] for name, domain in r["domains"].items()} for r in (result, other)]
    return counts[0] == counts[1] and all(
        result[name] == other[name] for name in ("symbol", "mode", "frame", "bars", "complete", "balance", "trades")
    )
