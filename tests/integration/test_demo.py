"""The demo: all domains in use, and a run that was interrupted anywhere ends like one that was not."""

import asyncio
import json
import os
import random
import re
import signal
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, Mode, Registry, SettingsError, embedded
from backtest_persist.cli.demo_display import sparkline
from backtest_persist.demo.bars import load
from backtest_persist.demo.replay import account, open_run, replay
from backtest_persist.demo.strategy import STRATEGY, Session, Signal, SmaCross, closed_signals
from backtest_persist.operations.transfer.importing import import_dump
from tests.support.cases import CASES
from tests.support.processes import CLI_PROGRAM, run_in_terminal, start_program

pytestmark = pytest.mark.filterwarnings("ignore:Use price instead:DeprecationWarning")  # basana's own use of it

BARS = 450
"""Enough of AAPL for an entry that expires, limit and market entries, a stop, a breakeven stop and an open end."""
LIVE = ("demo", "--mode", "live", "--bars", str(BARS), "--json", "--data-dir")
"""Each bar is stored before the next one begins."""

ONE_DRIVER = pytest.mark.parametrize("driver", ["motor"], indirect=True)

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


async def start_and_tell(*arguments: str, bars: int) -> asyncio.subprocess.Process:
    """Start it without a child, and return when so many of its bars have ended."""
    prelude = """
import sys
from backtest_persist.cli.demo_display import Display

ended = Display.ended

def telling(*arguments):
    print("ended", file=sys.stderr, flush=True)
    ended(*arguments)

Display.ended = telling
"""
    process = await start(*arguments, "--kill-after", "0", prelude=prelude)
    assert process.stderr is not None
    while bars:
        line = await process.stderr.readline()
        assert line, "it ended before"
        bars -= line == b"ended\n"
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


async def run_here(container: Container, mode: Mode = Mode.BACKTEST, bars: int = BARS) -> tuple[Session, list[Signal]]:
    """Run the strategy in this process, from wherever the session is; returns the session and all trades."""
    sample = load("AAPL")
    async with open_run(Registry(container), mode, sample) as run:
        await replay(run, sample, bars)
        await run.flush()
        assert run.bars == bars
        return run.session, await closed_signals(run)


@pytest.fixture(scope="module")
async def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Documents]:
    """The result and the documents of a run that nothing cut."""
    data_dir = tmp_path_factory.mktemp("uninterrupted")
    result = (await run(*LIVE, str(data_dir), "--kill-after", "0")).result
    for name, domain in result["domains"].items():
        assert domain["documents"] == domain["ids"] > 0, name
        assert domain["writes"] >= domain["documents"], name
    assert result["domains"]["session"]["writes"] == BARS
    assert (result["killedAfter"], result["sameAsWithoutKill"]) == (None, None)
    return result, await dump_directory(data_dir)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what depends on the process: reads, writes, time."""
    names = ("symbol", "mode", "frame", "bars", "complete", "balance", "trades")
    documents = {name: domain["documents"] for name, domain in result["domains"].items()}
    return {"documents": documents, **{name: result[name] for name in names}}


async def test_the_whole_sample() -> None:
    """All 3,270 bars, of which a child does the first ones until it is killed: every domain is used, as without it."""
    outcome = await run("demo", "--json")
    result = outcome.result
    assert (result["bars"], result["complete"], result["sameAsWithoutKill"]) == (3270, True, True)
    assert 0 < result["resumedFrom"] <= result["killedAfter"] < 3270
    domains = result["domains"]
    assert domains.keys() == {case.domain for case in CASES}
    for name, domain in domains.items():
        assert 0 < domain["ids"] <= domain["documents"], name  # the child may be killed before it tells Redis
        assert domain["writes"] > 0, name
    assert domains["candle"]["documents"] == 3270
    assert domains["session"]["writes"] < 1000  # those of many bars are stored as one
    assert domains["interval"]["documents"] == 157  # months
    assert (len(result["trades"]), result["balance"]) == (22, "47934.66")
    profit = sum(Decimal(trade["profit"]) for trade in result["trades"])
    assert Decimal(result["balance"]) == 10_000 + profit
    killed, resumed = f"{result['killedAfter']:,}", f"{result['resumedFrom']:,}"
    begun, died, goes_on, _ = outcome.errors.splitlines()
    assert begun == "AAPL, backtest: 3,270 daily bars through basana."
    assert died == f"AAPL, backtest: killed (kill -9) after bar {killed}."
    assert goes_on.startswith(f"AAPL, backtest: resuming after bar {resumed}; ")


async def test_the_report(tmp_path: Path) -> None:
    """Without a terminal the report is plain text of 80 columns; no process and no file is left."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        outcome = await run("demo", "--symbol", "FB", "--kill-after", "120", TMPDIR=directory)
        assert os.listdir(directory) == []
    assert outcome.status == 0, outcome.errors
    lines = outcome.output.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    for name in (case.domain for case in CASES):
        assert rows[name][0] != "0", name
    assert max(map(len, lines)) == 80
    assert "\x1b" not in outcome.output + outcome.errors
    for words in (
        "final balance",
        "events per second",
        "cache hit rate",
        "1 trade",
        "buy and hold",
        "without a kill",
    ):
        assert words in outcome.output
    assert "NOT" not in outcome.output
    assert "killed (kill -9) after bar 1" in outcome.errors
    assert "196/196" in outcome.errors


async def test_a_terminal_shows_equity_and_trades() -> None:
    """While it runs, a terminal of 80 columns shows the progress, the equity as blocks, and the last trades."""
    output = await run_in_terminal("demo", "--backend", "dummy", "--bars", "400", columns=80)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"equity [▁▂▃▄▅▆▇█]{60} [\d,]+\.\d\d", line) for line in lines)
    assert any(re.match(r"\d{4}-\d\d-\d\d to .* shares .* % +stop loss", line) for line in lines)
    assert "400/400" in output


async def test_stopped_killed_and_resumed(uninterrupted: tuple[dict[str, Any], Documents], tmp_path: Path) -> None:
    """--stop-after, or ``kill -9``, ends the process and its servers; each next run goes on, to the same end.

    It is stopped while a limit order waits and while a market order waits for the open, and killed in between.
    """
    expected, documents = uninterrupted

    async def stop_after(bars: int, total: int) -> None:
        outcome = await run(*LIVE, str(tmp_path), "--stop-after", str(bars))
        assert (outcome.status, outcome.output) == (0, ""), outcome.errors
        assert f"{total:,} of {BARS:,} in all" in outcome.errors
        assert "killed" not in outcome.errors

    await stop_after(95, 95)
    chance = random.Random(3)
    process = await start_and_tell(*LIVE, str(tmp_path), bars=chance.randrange(20, 150))
    await asyncio.sleep(chance.uniform(0, 0.01))
    process.kill()
    _, errors = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    async with embedded(tmp_path) as settings, Container(settings) as container:
        session = (await container.session_db_service.find_all())[0].payload
    assert session is not None
    assert session["bars"] >= 95 + 20, errors.decode()
    await stop_after(417 - session["bars"], 417)

    result = (await run(*LIVE, str(tmp_path))).result
    assert (result["resumedFrom"], result["killedAfter"]) == (417, None)
    assert comparable(result) == comparable(expected)
    assert_same(await dump_directory(tmp_path), documents)

    again = await run(*LIVE, str(tmp_path))
    assert "complete" in again.errors
    assert comparable(again.result) == comparable(expected)
    assert sum(domain["writes"] for domain in again.result["domains"].values()) == 0


@ONE_DRIVER
async def test_modes(container: Container) -> None:
    """Three modes on one database: the same trades and balance, each with its own documents."""
    bars = 260
    results: list[tuple[Any, Any]] = []
    for mode in Mode:
        session, closed = await run_here(container, mode, bars)
        results.append(([trade.model_dump(exclude={"id"}) for trade in closed], session.equity))
    assert len(results[0][0]) == 2
    assert results[0] == results[1] == results[2]
    for service, each in ((container.session_db_service, 1), (container.recent_db_service, 1)):
        assert await service.count({"backtest": True}) == each
        assert await service.count({"backtest": False}) == 2 * each
    for service in (container.storage_db_service, container.notification_db_service):
        assert 2 * await service.count({"backtest": True}) == await service.count({"backtest": False}) > 0
    assert await container.signal_db_service.count() == 3
    assert await container.candle_db_service.count() == 3 * bars


async def test_paper(tmp_path: Path) -> None:
    """--mode paper on the directory of a backtest is a run of its own."""
    arguments = ("demo", "--bars", "60", "--json", "--kill-after", "0", "--data-dir", str(tmp_path))
    await run(*arguments)
    paper = (await run(*arguments, "--mode", "paper")).result
    assert (paper["mode"], paper["resumedFrom"], paper["bars"]) == ("paper", 0, 60)
    other = (await run(*arguments, "--symbol", "IBM")).result
    assert (other["resumedFrom"], other["domains"]["session"]["documents"]) == (0, 3)


@ONE_DRIVER
async def test_more_bars_later(container: Container) -> None:
    """A run over the first bars goes on with more of them, and never back."""
    for bars in (40, 70):
        await run_here(container, bars=bars)


@ONE_DRIVER
async def test_json_files_give_the_same_result(
    uninterrupted: tuple[dict[str, Any], Documents], container: Container, tmp_path: Path
) -> None:
    """The same strategy on JSON files, stopped once, makes the same trades; imported, it is the same documents."""
    expected, documents = uninterrupted
    arguments = (*LIVE, str(tmp_path), "--backend", "json")
    outcome = await run(*arguments, "--stop-after", "100")
    assert (outcome.status, outcome.output) == (0, ""), outcome.errors
    result = (await run(*arguments)).result
    assert result["resumedFrom"] == 100
    for name in ("symbol", "mode", "frame", "bars", "complete", "balance", "trades"):
        assert result[name] == expected[name], name
    assert {name: domain["files"] for name, domain in result["domains"].items()} == {
        name: domain["documents"] for name, domain in expected["domains"].items()
    }
    assert (await import_dump(container, tmp_path)).skipped == []
    assert_same(await dump(container), documents)


async def test_a_killed_run_on_json_files(tmp_path: Path) -> None:
    """The child writes the same files, and the run goes on from them."""
    outcome = await run("demo", "--backend", "json", "--bars", "120", "--kill-after", "50", "--json")
    result = outcome.result
    assert result["sameAsWithoutKill"] is True
    assert result["resumedFrom"] <= result["killedAfter"] < result["bars"] == 120


async def test_the_dummy_stores_nothing() -> None:
    """Without anything behind the adapters the strategy makes the same trades, and needs no server for it."""
    outcome = await run("demo", "--backend", "dummy", PATH="")
    assert outcome.status == 0, outcome.errors
    assert "nothing was stored" in " ".join(outcome.output.split())
    assert "47,934.66" in outcome.output
    assert max(map(len, outcome.output.splitlines())) == 80
    assert "3,270 bars in" in outcome.output


@ONE_DRIVER
async def test_the_session_of_an_older_demo(container: Container, tmp_path: Path) -> None:
    """A data directory of an earlier version is refused with what to do, and stays as it is."""
    registry, sample = Registry(container), load("AAPL")
    session = await registry.session(STRATEGY, account(Mode.BACKTEST), sample.frame, "AAPL", True)
    await session.write_session_data({"bars": 40, "lastBar": 0}, sample.events[39].when)
    with pytest.raises(SettingsError, match=r"holds a session that no run has stored.*restart=True"):
        await run_here(container)
    registry.use_json(tmp_path)
    session = await registry.session(STRATEGY, account(Mode.BACKTEST), sample.frame, "AAPL", True)
    await session.write_session_data({"bars": 40, "lastBar": 0}, sample.events[39].when)
    outcome = await run("demo", "--backend", "json", "--data-dir", str(tmp_path))
    assert outcome.status == 1
    problem = "was made by an older version of the demo; use another."
    assert outcome.errors.strip() == f"backtest-persist: The session in --data-dir {tmp_path} {problem}"
    assert await session.read_session_data() == {"bars": 40, "lastBar": 0}


@ONE_DRIVER
async def test_an_error_ends_the_run(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a handler ends the run as it is, and no later bar is processed."""
    seen: list[Any] = []

    async def on_bar(self: SmaCross, bar: Any, prices: Any) -> None:
        seen.append(bar)
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
        (["--kill-after", "-1"], 2, "--kill-after"),
        (["--backend", "json", "--bars", "40", "--kill-after", "40"], 1, "--kill-after 40 is not within the run"),
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
    process = await start_and_tell(*arguments, bars=100)
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


def test_a_sparkline() -> None:
    """It has a block for each value, or for each of equal parts, from the lowest to the highest."""
    assert sparkline([1.0, 2.0, 8.0], 60) == "▁▂█"
    assert sparkline([5.0, 5.0], 60) == "▁▁"
    assert sparkline([float(value) for value in range(800)], 8) == "▁▂▃▄▅▆▇█"
