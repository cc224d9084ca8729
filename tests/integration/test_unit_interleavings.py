"""Units of work whose parts overlap: tasks at once, blocks in blocks, commits that fail while a strategy goes on."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from backtest_persist import (
    ClosedError,
    Container,
    InvalidPayloadError,
    Mode,
    Registry,
    Settings,
    SettingsError,
    StoreUnavailableError,
    WriteRejectedError,
)
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.core.change import Part
from backtest_persist.run.run import Run
from backtest_persist.testing.subjects import MINUTE, START, candle
from tests.own_domain.funding import FUNDING
from tests.support.commands import monitored_container
from tests.support.units import discarded

WHEN = START + 100 * MINUTE
LARGE = "x" * 300_000
"""Encoded in a thread."""


@pytest.fixture(scope="session")
def driver() -> str:
    """These tests are not about drivers."""
    return "motor"


def run_of(persist: Registry, mode: Mode, **options: Any) -> Run[dict[str, Any]]:
    return persist.run(strategy="trend", exchange="binance", symbol="BTC", frame="2024", mode=mode, **options)


class Failing:
    """A committer that stores nothing, fails once after so many turns of the loop, and counts."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.commits = 0

    async def wait_for_init(self) -> None: ...

    async def close(self) -> None: ...

    async def commit(self, parts: Sequence[Part]) -> None:
        self.commits += 1
        for _ in range(self.steps):
            await asyncio.sleep(0)
        if self.commits == 1:
            raise WriteRejectedError("refused")


@pytest.mark.parametrize("steps", range(7))
async def test_no_commit_follows_one_that_has_failed(
    persist: Registry, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever turn of the loop it fails in: a later one would store a session that knows of lost bars."""
    failing, done = Failing(steps), 0

    def committer(self: MongoBackend, lease: Any = None) -> Failing:
        return failing

    async def do_bars() -> None:
        nonlocal done
        async with run_of(persist, Mode.BACKTEST, commit_every=3) as run:
            for number in range(60):
                async with run.bar(WHEN + number * MINUTE):
                    pass
                done += 1

    monkeypatch.setattr(MongoBackend, "committer", committer)
    with pytest.raises(WriteRejectedError):
        await do_bars()
    assert done < 10
    assert failing.commits == 1


async def test_a_live_bar_whose_end_was_cancelled_and_failed_can_be_done_again(
    persist: Registry, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next bar waits for it; it is not seen, and its session is what it was."""
    release = asyncio.Event()

    async def commit(self: object, parts: Sequence[Part]) -> None:
        await release.wait()
        raise StoreUnavailableError("away")

    async with run_of(persist, Mode.LIVE) as run:
        async with run.bar(WHEN) as bar:
            bar.session["n"] = 1
        with monkeypatch.context() as patch:
            patch.setattr("backtest_persist.core.transaction.MongoCommitter.commit", commit)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), run.bar(WHEN + MINUTE) as bar:
                    bar.session["n"] = 2
            release.set()
            await asyncio.sleep(0.05)
        async with run.bar(WHEN + MINUTE) as bar:
            assert bar.session == {"n": 1}
            bar.session["n"] = 3
    row = await container.session_db_service.find_by_context("trend", "binance", "2024", "BTC", False)
    assert row is not None
    assert row.payload is not None
    assert (row.payload["bars"], row.payload["data"]) == (2, {"n": 3})


async def test_no_candle_after_a_bar_is_read_within_it(persist: Registry, container: Container) -> None:
    """Also where the adapter is asked for the last candles without an end, or for a window that ends later."""
    await container.candle_db_service.create_many("BTC", "1m", "binance", [candle(n) for n in range(50)])
    async with run_of(persist, Mode.BACKTEST) as run, run.bar(START + 10 * MINUTE) as bar:
        series = bar.candle("1m")
        assert await series.read_last_candles(100) == [candle(n) for n in range(10)]
        assert await series.read_candles_data(10, START) == [candle(n) for n in range(10)]
        assert await series.read_candles_data(11, START) is None
        assert await series.read_candle_columns(11, START) is None
        ordinary = await persist.candle("BTC", "1m", "binance")
        assert await ordinary.read_last_candles(3) == [candle(7), candle(8), candle(9)]


async def test_what_a_discarded_bar_has_read_is_read_again(persist: Registry, container: Container) -> None:
    """So does a live bar after a read between bars: others may have written meanwhile."""
    async with run_of(persist, Mode.LIVE) as run:
        async with discarded(run.bar(WHEN)):
            assert await run.adapters.risk("r").read_position_data() == []
        await container.risk_db_service.upsert("r", "binance", [1], WHEN)
        async with run.bar(WHEN) as bar:
            assert await bar.risk("r").read_position_data() == [1]
        assert await run.adapters.risk("r").read_position_data(WHEN) == [1]
        await container.risk_db_service.upsert("r", "binance", [2], WHEN)
        async with run.bar(WHEN + MINUTE) as bar:
            assert await bar.risk("r").read_position_data() == [2]


async def test_a_large_write_is_not_lost_behind_a_later_one_that_fails(persist: Registry) -> None:
    """What is encoded in a thread is stored unless a later write of its row was."""
    signal, log = await persist.signal("s", "t", "e"), await persist.log()
    async with persist.checkpoint():
        ends = await asyncio.gather(
            signal.write_signal_data({"text": LARGE}),
            signal.write_signal_data({"text": LARGE, "bad": object()}),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [type(None), InvalidPayloadError]
        assert await signal.read_signal_data() == {"text": LARGE}
        await asyncio.gather(signal.write_signal_data({"text": LARGE}), signal.write_signal_data({"n": 2}))
        assert await signal.read_signal_data() == {"n": 2}
        entries = [{"id": "a", "text": LARGE}], [{"id": "a", "n": 2}]
        await asyncio.gather(*(log.write_log_data(call) for call in entries))
        assert await log.read_log_data() == entries[0]
    assert await signal.read_signal_data() == {"n": 2}
    assert await log.read_log_data() == entries[0]


async def test_blocks_at_once_in_a_bar_do_not_see_each_other(persist: Registry) -> None:
    """One that is discarded was never seen by another; an entry that it has written first is not in the other's way."""
    log, signal = await persist.log(), await persist.signal("s", "t", "e")
    wrote, read = asyncio.Event(), asyncio.Event()

    async def discards() -> None:
        async with discarded(persist.checkpoint()):
            await signal.write_signal_data({"n": "discarded"})
            await log.write_log_data([{"id": "a", "n": "discarded"}])
            wrote.set()
            await read.wait()

    async def keeps() -> None:
        async with persist.checkpoint():
            await wrote.wait()
            assert await signal.read_signal_data() is None
            await log.write_log_data([{"id": "a", "n": "kept"}])
            read.set()

    async with run_of(persist, Mode.LIVE) as run, run.bar(WHEN):
        await asyncio.gather(discards(), keeps())
    assert await signal.read_signal_data() is None
    assert await log.read_log_data() == [{"id": "a", "n": "kept"}]


async def test_a_checkpoint_that_outlives_the_one_around_it_is_told(persist: Registry) -> None:
    """Nothing of it is stored, which it could not know otherwise."""
    signal, around = await persist.signal("s", "t", "e"), asyncio.Event()

    async def inner() -> None:
        async with persist.checkpoint():
            await signal.write_signal_data({"n": 1})
            await around.wait()

    async with persist.checkpoint():
        task = asyncio.create_task(inner())
        await asyncio.sleep(0)
    around.set()
    with pytest.raises(ClosedError, match="has ended before it"):
        await task
    assert await signal.read_signal_data() is None


async def test_a_transaction_has_the_concerns_of_all_writes(settings: Settings, driver: str) -> None:
    """It waits for a majority and reads from the primary, whatever the connection string says about reads."""
    uri = f"{settings.mongo_connection_string.get_secret_value()}&readPreference=secondaryPreferred"
    given = settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})
    async with monitored_container(given, driver) as (container, commands):
        persist = Registry(container)
        async with persist.checkpoint():
            assert await (await persist.interval("b")).claim_interval_data({}, "k", WHEN)
    concerns = [dict(concern)["w"] for name, concern in commands.write_concerns if name == "commitTransaction"]
    assert concerns == ["majority"]


async def test_queries_of_an_own_domain_take_no_part(settings: Settings) -> None:
    """The error says so, and where they can be sent."""
    async with AsyncExitStack() as stack:
        container = await stack.enter_async_context(Container(settings, domains=[FUNDING]))
        persist = Registry(container)
        async with run_of(persist, Mode.LIVE) as run, run.bar(WHEN) as bar:
            adapter: Any = bar.domain(FUNDING, "BTC", "binance")
            with pytest.raises(SettingsError, match="queries take no part"):
                await adapter.db.find_all()


async def test_a_run_that_was_not_entered_says_so(persist: Registry) -> None:
    """Whatever is asked of it."""
    run = run_of(persist, Mode.LIVE)
    with pytest.raises(SettingsError, match="Enter the run first"):
        run.bar(WHEN)
    with pytest.raises(SettingsError, match="Enter the run first"):
        _ = run.session
    with pytest.raises(SettingsError, match="Enter the run first"):
        await run.flush()
