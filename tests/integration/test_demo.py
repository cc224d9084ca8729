"""The demo: all domains in use, and a run that was interrupted anywhere ends like one that was not."""

import asyncio
import json
import os
import random
import signal
import tempfile
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, Mode, Registry, embedded
from backtest_persist.demo import replay
from backtest_persist.demo.bars import load
from backtest_persist.demo.strategy import SmaCross
from backtest_persist.operations.transfer.importing import import_dump
from tests.support.cases import CASES
from tests.support.processes import CLI_PROGRAM, start_program

pytestmark = pytest.mark.filterwarnings("ignore:Use price instead:DeprecationWarning")  # basana's own use of it

BARS = 450
"""Enough of AAPL for an entry that expires, limit and market entries, a stop, a breakeven stop and an open end."""

Documents = dict[str, list[dict[str, Any]]]


class Outcome:
    """The output and the exit status of a demo process."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.errors
        return json.loads(self.output)


async def start(*arguments: str, prelude: str = "", **environment: str) -> asyncio.subprocess.Process:
    """Start the command line in another process, after `prelude`."""
    return await start_program(
        f"{prelude}\n{CLI_PROGRAM}",
        *arguments,
        environment={"CC_REDIS_TIMEOUT_MS": "5000", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def start_and_tell(*arguments: str, writes: int) -> asyncio.subprocess.Process:
    """Start it, and return after so many of its writes were acknowledged."""
    prelude = """
import sys
from backtest_persist.core.mongo_store import MongoStore

upsert = MongoStore.upsert

async def telling(*arguments, **options):
    row = await upsert(*arguments, **options)
    print("stored", file=sys.stderr, flush=True)
    return row

MongoStore.upsert = telling
"""
    process = await start(*arguments, prelude=prelude)
    assert process.stderr is not None
    while writes:
        line = await process.stderr.readline()
        assert line, "it ended before"
        writes -= line == b"stored\n"
    return process


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
        documents[service.collection] = sorted((dict(sorted(document.items())) for document in found), key=repr)
    return documents


def assert_same(documents: Documents, expected: Documents) -> None:
    """Equal to the last digit: ``0`` and ``0.00`` are equal as decimals, but not as documents."""
    assert documents == expected
    assert repr(documents) == repr(expected)


async def dump_directory(data_dir: Path) -> Documents:
    async with embedded(data_dir) as settings, Container(settings) as container:
        return await dump(container)


async def run_here(container: Container, mode: Mode = Mode.BACKTEST, bars: int = BARS) -> SmaCross:
    """Run the strategy in this process, from wherever the session is."""
    sample = load("AAPL")
    strategy = SmaCross(Registry(container), mode, sample.pair, sample.frame)
    await strategy.restore()
    await replay(strategy, sample, bars)
    return strategy


@pytest.fixture(scope="module")
async def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Documents]:
    """The result and the documents of a run that nothing cut."""
    data_dir = tmp_path_factory.mktemp("uninterrupted")
    outcome = await run("demo", "--bars", str(BARS), "--json", "--data-dir", str(data_dir))
    return outcome.result, await dump_directory(data_dir)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what depends on the process: reads, writes, time."""
    names = ("symbol", "mode", "frame", "bars", "complete", "balance", "trades")
    documents = {name: domain["documents"] for name, domain in result["domains"].items()}
    return {"documents": documents, **{name: result[name] for name in names}}


async def test_the_whole_sample() -> None:
    """All 3,270 bars: every domain with documents, an id for each of them, reads that hit, and trades."""
    outcome = await run("demo", "--json")
    result = outcome.result
    assert (result["bars"], result["complete"], result["resumedFrom"]) == (3270, True, 0)
    domains = result["domains"]
    assert domains.keys() == {case.domain for case in CASES}
    for name, domain in domains.items():
        assert domain["documents"] == domain["ids"] > 0, name
        assert domain["writes"] >= domain["documents"], name
    assert domains["candle"]["documents"] == domains["session"]["writes"] == 3270
    assert domains["interval"]["documents"] == 157  # months
    assert domains["measure"]["hits"] == domains["measure"]["lookups"] - 1  # the day before the first
    assert len(result["trades"]) == 22
    profit = sum(Decimal(trade["profit"]) for trade in result["trades"])
    assert Decimal(result["balance"]) == 10_000 + profit
    assert outcome.errors.startswith("AAPL, backtest: 3,270 daily bars through basana.")


async def test_the_report(tmp_path: Path) -> None:
    """Without a terminal the report is plain text of 80 columns; no process and no file is left."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        outcome = await run("demo", "--symbol", "FB", TMPDIR=directory)
        assert os.listdir(directory) == []
    assert outcome.status == 0
    lines = outcome.output.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    for name in (case.domain for case in CASES):
        documents, ids = rows[name][:2]
        assert documents == ids != "0", name
    assert max(map(len, lines)) == 80
    assert "\x1b" not in outcome.output + outcome.errors
    for words in ("final balance", "events per second", "cache hit rate", "1 trade", "buy and hold"):
        assert words in outcome.output
    assert "196/196" in outcome.errors


async def test_stopped_hard_and_resumed(uninterrupted: tuple[dict[str, Any], Documents], tmp_path: Path) -> None:
    """--stop-after ends the process without a word to the servers; each next run goes on, the last one to the same end.

    The stops are before the first average, while a limit order waits, while a market order waits for the open, right
    after an entry and after an exit, and while a stop order stands.
    """
    expected, documents = uninterrupted
    bars = [event.when for event in load("AAPL").events[:BARS]]

    def find(kind: str, text: str = "") -> list[int]:
        """After which bars something was decided."""
        log = [document["payload"] for document in documents["log-items"]]
        return sorted(bars.index(e["at"]) + 1 for e in log if e["kind"] == kind and text in e["text"])

    waits, opens, opened = find("entry", "waits"), find("entry", "next open"), find("opened")
    stops = [1, 30, waits[0], waits[0] + 3, waits[1], opened[1], find("closed")[0], opens[0]]
    stops = sorted({*stops, find("breakeven")[0], find("cancelled")[0], opened[-1] + 5})

    arguments = ("demo", "--bars", str(BARS), "--json", "--data-dir", str(tmp_path))
    done = 0
    for stop in stops:
        outcome = await run(*arguments, "--stop-after", str(stop - done))
        assert (outcome.status, outcome.output) == (0, ""), outcome.errors
        assert f"{stop:,} of {BARS:,} in all" in outcome.errors
        done = stop
    result = (await run(*arguments)).result
    assert result["resumedFrom"] == done
    assert comparable(result) == comparable(expected)
    assert_same(await dump_directory(tmp_path), documents)

    again = await run(*arguments)
    assert "complete" in again.errors
    assert comparable(again.result) == comparable(expected)
    assert sum(domain["writes"] for domain in again.result["domains"].values()) == 0


async def test_killed_and_resumed(uninterrupted: tuple[dict[str, Any], Documents], tmp_path: Path) -> None:
    """``kill -9`` at any moment: the next run goes on, and ends with the same trades, balance and documents."""
    expected, documents = uninterrupted
    arguments = ("demo", "--bars", str(BARS), "--json", "--data-dir", str(tmp_path))
    chance = random.Random(3)
    for _ in range(3):
        process = await start_and_tell(*arguments, writes=chance.randrange(20, 150))
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
    result = (await run(*arguments)).result
    assert 0 < result["resumedFrom"] < BARS
    assert comparable(result) == comparable(expected)
    assert_same(await dump_directory(tmp_path), documents)


class CutError(Exception):
    """Stands for the end of the process."""


class Cuts:
    """Lets the writes of a container fail from a given one on, as if the process had ended before it."""

    def __init__(self, container: Container) -> None:
        self.left: int | None = None
        """Which write fails, counted from 1; None means none."""
        for service in container.db_services:
            for name in ("upsert", "update", "insert_many", "upsert_many"):
                setattr(service._store, name, self._failing(getattr(service._store, name)))

    def _failing(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            if self.left is None:
                return await write(*arguments, **options)
            self.left -= 1
            if self.left > 0:
                return await write(*arguments, **options)
            raise CutError

        return call


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
async def test_cut_at_any_write(uninterrupted: tuple[dict[str, Any], Documents], container: Container) -> None:
    """Every bar with a decision or a notification is cut at each of its writes, and done again all the same."""
    _, documents = uninterrupted
    bars = [event.when for event in load("AAPL").events[:BARS]]
    entries = documents["log-items"] + documents["notification-items"]
    cuts = Cuts(container)
    made = 0
    for bar in sorted({bars.index(entry["payload"]["at"]) + 1 for entry in entries}):
        cuts.left = None
        await run_here(container, bars=bar - 1)
        write, done = 0, False
        while not done:
            write += 1
            cuts.left = write
            before = asyncio.all_tasks()
            try:
                done = (await run_here(container, bars=bar)).session.bars == bar
            except CutError:
                made += 1
                if others := asyncio.all_tasks() - before:  # of a `gather`
                    await asyncio.wait(others)
    assert made > 250
    cuts.left = None
    await run_here(container)
    assert_same(await dump(container), documents)


async def test_modes(container: Container) -> None:
    """Three modes on one database: the same trades and balance, each with its own documents."""
    bars = 260
    results: list[tuple[Any, Any]] = []
    for mode in Mode:
        strategy = await run_here(container, mode, bars)
        trades = [trade.model_dump(exclude={"id"}) for trade in await strategy.trades()]
        results.append((trades, strategy.session.equity))
    assert len(results[0][0]) == 2
    assert results[0] == results[1] == results[2]
    for service, each in ((container.session_db_service, 1), (container.recent_db_service, 1)):
        assert await service.count({"backtest": True}) == each
        assert await service.count({"backtest": False}) == 2 * each
    for service in (container.storage_db_service, container.notification_db_service):
        assert 2 * await service.count({"backtest": True}) == await service.count({"backtest": False}) > 0
    assert await container.signal_db_service.count() == 3
    assert await container.candle_db_service.count() == bars


async def test_paper(tmp_path: Path) -> None:
    """--mode paper on the directory of a backtest is a run of its own."""
    arguments = ("demo", "--bars", "60", "--json", "--data-dir", str(tmp_path))
    await run(*arguments)
    paper = (await run(*arguments, "--mode", "paper")).result
    assert (paper["mode"], paper["resumedFrom"], paper["bars"]) == ("paper", 0, 60)
    other = (await run(*arguments, "--symbol", "IBM")).result
    assert (other["resumedFrom"], other["domains"]["session"]["documents"]) == (0, 3)


async def test_more_bars_later(container: Container) -> None:
    """A run over the first bars goes on with more of them, and never back."""
    assert (await run_here(container, bars=40)).session.bars == 40
    assert (await run_here(container, bars=70)).session.bars == 70


async def test_json_files_give_the_same_result(
    uninterrupted: tuple[dict[str, Any], Documents], container: Container, tmp_path: Path
) -> None:
    """The same strategy on JSON files, stopped twice, makes the same trades; imported, it is the same documents."""
    expected, documents = uninterrupted
    arguments = ("demo", "--backend", "json", "--bars", str(BARS), "--json", "--data-dir", str(tmp_path))
    for stop in (100, 200):
        outcome = await run(*arguments, "--stop-after", str(stop))
        assert (outcome.status, outcome.output) == (0, ""), outcome.errors
    result = (await run(*arguments)).result
    assert result["resumedFrom"] == 300
    for name in ("symbol", "mode", "frame", "bars", "complete", "balance", "trades"):
        assert result[name] == expected[name], name
    assert {name: domain["files"] for name, domain in result["domains"].items()} == {
        name: domain["documents"] for name, domain in expected["domains"].items()
    }
    assert (await import_dump(container, tmp_path)).skipped == []
    assert_same(await dump(container), documents)


async def test_the_dummy_runs_and_forgets() -> None:
    """Without anything behind the adapters the strategy runs to the end, and needs no server for it."""
    outcome = await run("demo", "--backend", "dummy", "--bars", str(BARS), PATH="")
    assert outcome.status == 0, outcome.errors
    assert "every read found nothing" in " ".join(outcome.output.split())
    assert max(map(len, outcome.output.splitlines())) == 80
    assert f"{BARS} bars in" in outcome.output


async def test_an_error_ends_the_run(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a handler ends the run as it is, and no later bar is processed."""
    seen: list[Any] = []

    async def on_bar(self: SmaCross, event: Any) -> None:
        seen.append(event)
        raise LookupError("mine")

    monkeypatch.setattr(SmaCross, "on_bar", on_bar)
    with pytest.raises(LookupError, match="mine"):
        await run_here(container)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--symbol", "XYZ"], 2, "AAPL"),
        (["--mode", "dry"], 2, "paper"),
        (["--stop-after", "0"], 2, "--stop-after"),
        (["--servers", "env", "--data-dir", "x"], 1, "--servers env"),
        (["--backend", "dummy", "--data-dir", "x"], 1, "--backend dummy keeps nothing"),
        (["--backend", "csv"], 2, "json"),
    ],
)
async def test_bad_arguments(arguments: list[str], status: int, words: str) -> None:
    """A bad argument is a message on standard error and a status other than 0."""
    outcome = await run("demo", *arguments)
    assert (outcome.status, outcome.output) == (status, "")
    assert words in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.parametrize(
    ("package", "extra"),
    [("attrs", "cli"), ("basana", "demo"), ("bokeh_sampledata", "demo"), ("cyclopts", "cli"), ("rich", "cli")],
)
async def test_missing_extra(package: str, extra: str) -> None:
    """Without a package of an extra, the command names that extra in one line."""
    outcome = await run("demo", prelude=f"import sys; sys.modules[{package!r}] = None")
    assert outcome.status == 2
    assert outcome.errors.splitlines() == [
        f'backtest-persist: {package} is not installed; run: pip install "backtest-persist[{extra}]"'
    ]


async def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the run and its servers in good order, and the next run goes on."""
    arguments = ("demo", "--bars", "300", "--json", "--data-dir", str(tmp_path))
    process = await start_and_tell(*arguments, writes=20)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors.decode()
    assert "interrupted" in errors.decode()
    assert (await run(*arguments)).result["resumedFrom"] > 0


def test_the_bars_are_consistent() -> None:
    """Every stock of the sample yields bars in order, whole cents, none of them widened."""
    for symbol, count in {"AAPL": 3270, "FB": 196, "GOOG": 2148, "IBM": 3270, "MSFT": 3270}.items():
        sample = load(symbol)
        assert (len(sample.events), sample.widened) == (count, 0)
        times = [event.when for event in sample.events]
        assert times == sorted(set(times))
        assert all(event.bar.close == round(event.bar.close, 2) > 0 for event in sample.events)
