"""Runs: a strategy bar by bar, whose bars are stored as a whole, and that goes on where it was."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from backtest_persist import (
    ClosedError,
    Container,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidWhenError,
    LeaseHeldError,
    Mode,
    Registry,
    Settings,
    SettingsError,
)
from backtest_persist.run.run import BARS_OF_A_COMMIT, Run
from backtest_persist.testing.subjects import MINUTE, START, candle
from tests.own_domain.funding import FUNDING
from tests.support.servers import private_mongod, wait_until
from tests.support.units import discarded

WHEN = START + 100 * MINUTE
NAMES: dict[str, Any] = {"strategy": "trend", "exchange": "binance", "symbol": "BTCUSDT", "frame": "2024"}


class Side(Enum):
    """An enum in a session, which is stored by value."""

    LONG = "long"
    FLAT = "flat"


@dataclass
class Fill:
    """A dataclass in a session."""

    price: Decimal


class Session(BaseModel):
    """The state of the strategy of these tests."""

    model_config = ConfigDict(strict=True)

    position: int = 0
    side: Side = Side.FLAT
    cash: Decimal = Decimal("10.50")
    levels: list[int] = Field(default_factory=list[int], alias="openLevels")
    fills: dict[str, Fill] = Field(default_factory=dict[str, Fill])
    pair: tuple[int, str] = (1, "a")


@pytest.fixture(scope="session")
def driver() -> str:
    """These tests are not about drivers."""
    return "motor"


def run_of(persist: Registry, mode: Mode = Mode.BACKTEST, **options: Any) -> Run[Any]:
    """Return the run of the tests, or one that differs."""
    names: dict[str, Any] = {**NAMES, "mode": mode, **options}
    return persist.run(**names)


async def bar(run: Run[Any], n: int) -> None:
    """Do the n-th bar: it writes its number in several domains."""
    async with run.bar(WHEN + n * MINUTE) as bar:
        bar.session["n"] = n
        await bar.signal.write_signal_data({"n": n})
        await bar.storage.write_storage_data([{"id": bar.new_id(), "n": n}])
        await bar.risk("r").write_position_data([{"n": n}])


async def stored(registry: Registry, mode: Mode = Mode.BACKTEST) -> int:
    """Return how many bars are stored; one of which a part is stored is an AssertionError."""
    sessions = await registry.session("trend", "binance", "2024", "BTCUSDT", mode)
    while True:  # these are several reads, between which a commit may come
        session = await sessions.read_session_data()
        signal = await (await registry.signal("BTCUSDT", "trend", "binance")).read_signal_data()
        entries = await (await registry.storage(mode)).read_storage_data()
        positions = await (await registry.risk("r", "binance")).read_position_data(WHEN + 10_000 * MINUTE)
        if session == await sessions.read_session_data():
            break
    bars = 0 if session is None else session["bars"]
    last = bars - 1
    assert [signal, positions] == ([{"n": last}, [{"n": last}]] if bars else [None, []])
    assert [entry["n"] for entry in entries] == list(range(bars))
    if session is not None:
        assert (session["data"], session["when"]) == ({"n": last}, WHEN + last * MINUTE)
    return bars


# --- bars ---


async def test_a_run_goes_on_where_it_was(persist: Registry, witness: Registry) -> None:
    """Bars that are stored are seen, the session is the one of their end, and the ids of others follow."""
    async with run_of(persist) as run:
        assert (run.last_when, run.bars, run.session, run.seen(WHEN)) == (None, 0, {}, False)
        for n in range(3):
            await bar(run, n)
        assert await stored(witness) == 0
        await run.flush()
        assert await stored(witness) == 3
        await bar(run, 3)
    assert await stored(witness) == 4
    async with run_of(witness) as run:
        assert (run.last_when, run.bars, run.session) == (WHEN + 3 * MINUTE, 4, {"n": 3})
        assert run.seen(WHEN + 3 * MINUTE)
        assert not run.seen(WHEN + 3 * MINUTE + 1)
        with pytest.raises(InvalidWhenError, match="seen"):
            await bar(run, 3)
        await bar(run, 4)
    assert await stored(persist) == 5


async def test_a_bar_sees_its_own_writes_at_its_instant(persist: Registry, container: Container) -> None:
    """In every domain of the run; a `when` that is left out is that of the bar, and nothing later is read."""
    async with run_of(persist) as run, run.bar(WHEN) as this:
        await this.signal.write_signal_data({"n": 1})
        await this.schedule.write_schedule_data({"n": 1})
        await this.strategy.write_strategy_data({"n": 1})
        await this.recent.write_recent_data({"n": 1})
        await this.partial.write_partial_data({"n": 1}, "s")
        await this.breakeven.write_breakeven_data({"n": 1}, "s")
        await this.log.write_log_data([{"id": "l"}])
        await this.notification.write_notification_data([{"id": "n"}])
        await this.measure("b").write_measure_data({"n": 1}, "k")
        await this.interval("b").write_interval_data({"n": 1}, "k")
        await this.state("s", "b").write_state_data({"n": 1})
        await this.state("s", "later").write_state_data({"n": 1}, WHEN + 1)
        await this.memory("s", "b").write_memory_data({"n": 1}, "m")
        await this.dictionary("s", "d").write_dictionary_data({"n": 1})
        await this.candle("1m").write_candles_data([candle(0)])
        assert await this.partial.read_partial_data("s") == {"n": 1}
        assert await this.state("s", "b").read_state_data() == {"n": 1}
        assert await this.state("s", "later").read_state_data() is None
        assert [row["timestamp"] for row in await this.candles("1m", 5)] == [START]
    row = await container.state_db_service.find_by_context("s", "b")
    assert row is not None
    assert row.when == WHEN
    assert await container.recent_db_service.find_by_context("BTCUSDT", "trend", "binance", "2024", True)
    assert await container.candle_db_service.has_candle("BTCUSDT", "1m", "binance", START)


async def test_an_own_domain_takes_part(settings: Settings) -> None:
    """By `bar.domain`; one that the backend does not have is a `SettingsError`."""
    async with Container(settings, domains=[FUNDING]) as container, Container(settings) as other:
        persist = Registry(container)
        async with run_of(persist) as run:
            async with run.bar(WHEN) as this:
                adapter: Any = this.domain(FUNDING, "BTCUSDT", "binance")
                await adapter.write_funding_data({"rate": 1}, WHEN)
            async with discarded(run.bar(WHEN + MINUTE)):
                await adapter.write_funding_data({"rate": 2}, WHEN + MINUTE)
        found: Any = await persist.entry(FUNDING)("BTCUSDT", "binance")
        assert await found.read_funding_data(when=WHEN + MINUTE) == {"rate": 1}
        async with run_of(Registry(other)) as run, run.bar(WHEN + MINUTE) as this:
            adapter = this.domain(FUNDING, "BTCUSDT", "binance")
            with pytest.raises(SettingsError):
                await adapter.read_funding_data()


async def test_adapters_of_the_registry_join_the_bar(persist: Registry, witness: Registry) -> None:
    """Also from tasks that it starts, and with a checkpoint in it: the timer stores no part of the bar."""
    signal = await persist.signal("BTCUSDT", "trend", "binance")
    schedule = await persist.schedule("BTCUSDT", "trend", "binance")
    async with run_of(persist) as run:
        await bar(run, 0)
        async with run.bar(WHEN + MINUTE) as this, asyncio.TaskGroup() as tasks:
            this.session["n"] = 1
            tasks.create_task(signal.write_signal_data({"n": 1}))
            await this.storage.write_storage_data([{"id": this.new_id(), "n": 1}])
            async with persist.checkpoint():
                await schedule.write_schedule_data({"n": 1})
                await asyncio.sleep(0.4)  # the first bar is stored by now
                assert await stored(witness) == 1
            async with discarded(persist.checkpoint()):
                await schedule.write_schedule_data({"n": 2})
            await this.risk("r").write_position_data([{"n": 1}])
            assert await schedule.read_schedule_data() == {"n": 1}
        assert await schedule.read_schedule_data() is None  # the bar has ended, and is not stored yet
        assert await run.adapters.schedule.read_schedule_data() == {"n": 1}
    assert await stored(witness) == 2
    assert await schedule.read_schedule_data() == {"n": 1}


@pytest.mark.parametrize("mode", [Mode.BACKTEST, Mode.LIVE])
async def test_an_error_discards_the_bar(persist: Registry, witness: Registry, mode: Mode) -> None:
    """The session is what it was, and the bar can be done again, with the same ids; so after a cancelled body."""
    async with run_of(persist, mode, session=Session) as run:
        async with run.bar(WHEN) as this:
            this.session.levels.append(1)
            this.session.fills["a"] = Fill(Decimal("1.10"))
            this.session.side = Side.LONG
            ids = [this.new_id(), this.new_id("order"), this.new_id()]
        again = run.bar(WHEN + MINUTE)
        for n in range(2):
            async with discarded(again):
                again.session.levels.append(2)
                again.session.position = n
                await again.signal.write_signal_data({"id": again.new_id()})
            assert run.session == Session(openLevels=[1], fills={"a": Fill(Decimal("1.10"))}, side=Side.LONG)

        async def cancelled() -> None:
            async with asyncio.timeout(0.05), again:
                again.session = Session(position=7)
                await asyncio.sleep(10)

        with pytest.raises(TimeoutError):
            await cancelled()
        assert run.session.position == 0
        assert not run.seen(WHEN + MINUTE)
        async with again:
            ids += [again.new_id(), again.new_id()]
            again.session.position = 3
        assert len(set(ids)) == 5
        async with again.__class__(run, WHEN + 2 * MINUTE) as other:
            other.session.position = 4
    async with run_of(witness, mode, session=Session) as run:
        assert run.bars == 3
        assert run.session == Session(openLevels=[1], fills={"a": Fill(Decimal("1.10"))}, side=Side.LONG, position=4)
        assert await run.adapters.signal.read_signal_data() is None


async def test_ids_are_global_and_the_same_when_a_bar_is_done_again(persist: Registry) -> None:
    """They differ by strategy, symbol, exchange, frame, mode, bar, kind and number, also with ``:`` in names."""
    runs = [
        run_of(persist),
        run_of(persist, Mode.LIVE),
        run_of(persist, Mode.PAPER),
        run_of(persist, strategy="trend:binance", exchange="x"),
        run_of(persist, strategy="trend", exchange="binance:x"),
        run_of(persist, symbol="BTC/USDT:USDT"),
        run_of(persist, frame=""),
        run_of(persist, frame="%3A"),
        run_of(persist, frame=":"),
    ]
    seen: set[str] = set()
    for run in runs:
        given: list[list[str]] = []
        for _ in range(2):
            run = Run[Any](  # as after a restart
                *(run._backend, run.context, dict),
                commit_every=None,
                lease_wait=0,
                atomic=True,
                restart=False,
                memories=run._memories,
            )
            async with run:
                ids: list[str] = []
                for when in (WHEN, WHEN + MINUTE):
                    async with discarded(this := run.bar(when)):
                        ids += [this.new_id(), this.new_id(), this.new_id("order"), this.new_id("order:1")]
                        with pytest.raises(InvalidKeyError):
                            this.new_id("")
                given.append(ids)
        assert given[0] == given[1]
        assert len({*given[0]}) == 8
        assert seen.isdisjoint(given[0])
        seen |= {*given[0]}


async def test_what_a_run_refuses(persist: Registry) -> None:
    """A bar in a bar, writes between bars, names and settings that cannot be, sessions that cannot be stored."""
    wrong: list[dict[str, Any]] = [*({"commit_every": every} for every in (0, True, 1.5)), {"lease_wait": -1}]
    for options in wrong:
        with pytest.raises(SettingsError):
            await run_of(persist, **options).__aenter__()
    with pytest.raises(SettingsError, match="bar by bar"):
        run_of(persist, commit_every=2, atomic=False)
    with pytest.raises(InvalidKeyError):
        run_of(persist, strategy="")
    with pytest.raises(SettingsError, match="pydantic model or a dict"):
        await run_of(persist, session=list).__aenter__()
    unentered = run_of(persist)
    with pytest.raises(SettingsError, match="Enter the run first"):
        unentered.bar(WHEN)
    signal = await persist.signal("BTCUSDT", "trend", "binance")
    async with run_of(persist) as run:
        with pytest.raises(SettingsError, match="entered once"):
            await run.__aenter__()
        with pytest.raises(LeaseHeldError):
            await run_of(persist).__aenter__()
        for when in (None, 1.5, True, START // 1000, "2024"):
            with pytest.raises(InvalidWhenError):
                run.bar(when)  # pyright: ignore[reportArgumentType]
        async with run.bar(WHEN) as this:
            with pytest.raises(SettingsError, match="has not ended"):
                await run.bar(WHEN + 1).__aenter__()
            await this.signal.write_signal_data({"n": 1})
        with pytest.raises(ClosedError, match="within a bar"):
            await this.signal.write_signal_data({"n": 2})
        with pytest.raises(SettingsError, match="has ended"):
            await this.candles("1m", 1)
        assert await run.adapters.signal.read_signal_data() == {"n": 1}
        assert await signal.read_signal_data() is None
        await signal.write_signal_data({"n": 0})  # it is not of the run
        with pytest.raises(InvalidPayloadError):
            async with run.bar(WHEN + 1) as this:
                this.session["n"] = {1, 2}
        assert run.session == {}
    for call in (run.flush, lambda: run.bar(WHEN + 2).__aenter__(), lambda: this.signal.write_signal_data({})):
        with pytest.raises(ClosedError):
            await call()
    assert await signal.read_signal_data() == {"n": 1}


async def test_a_session_that_cannot_be_made_again_is_told_in_the_first_bar(persist: Registry) -> None:
    """Not after a kill; nothing is stored."""

    class Forbidding(BaseModel):
        model_config = ConfigDict(extra="forbid")
        kept: int = 0
        other: Any = 0

        def model_dump(self, **options: Any) -> dict[str, Any]:
            return {"kept": 0, "gone": 1}

    async with run_of(persist, session=Forbidding) as run:
        with pytest.raises(SettingsError, match="Forbidding: see gone"):
            async with run.bar(WHEN):
                pass
        assert run.bars == 0


async def test_a_task_that_outlives_its_bar(persist: Registry) -> None:
    """It reads, but writes neither between bars nor after the run; what it began to encode is in no other bar."""
    go_on = asyncio.Event()
    signal = await persist.signal("BTCUSDT", "trend", "binance")

    async def late() -> None:
        await go_on.wait()
        assert await signal.read_signal_data() == {"n": 0}
        await signal.write_signal_data({"n": 9})

    async with run_of(persist) as run:
        async with run.bar(WHEN) as this:
            await this.signal.write_signal_data({"n": 0})
            leaked = [asyncio.create_task(late())]
            leaked.append(asyncio.create_task(this.state("s", "b").write_state_data({"t": ["x" * 1000] * 3000})))
            await asyncio.sleep(0)
        async with run.bar(WHEN + MINUTE):
            with pytest.raises(ClosedError):
                await leaked[1]
        go_on.set()
        with pytest.raises(ClosedError):
            await leaked[0]
        assert await run.adapters.state("s", "b").read_state_data() is None


# --- commits ---


async def test_bars_are_stored_between_bars_alone(persist: Registry, witness: Registry) -> None:
    """In live mode each at its end; in a backtest by count, after 250 ms, by `flush`, and at the end of the run."""
    async with run_of(persist, Mode.LIVE) as run:
        for n in range(2):
            await bar(run, n)
            assert await stored(witness, Mode.LIVE) == n + 1
    async with run_of(persist, Mode.BACKTEST, frame="count", commit_every=3) as run:
        for n in range(7):
            async with run.bar(WHEN + n * MINUTE) as this:
                this.session["n"] = n
        await run._settled()
        counted = await (await witness.session("trend", "binance", "count", "BTCUSDT", True)).read_session_data()
        assert counted is not None
        assert counted["bars"] in (3, 6)
    assert await (await witness.session("trend", "binance", "count", "BTCUSDT", True)).read_session_data()


async def test_bars_of_a_backtest_are_stored_after_a_while(persist: Registry, witness: Registry) -> None:
    """However few they are, and while the next one is under way, of which no part is stored."""
    signal = await persist.signal("BTCUSDT", "trend", "binance")
    await signal.write_signal_data(None)
    async with run_of(persist) as run:
        await bar(run, 0)
        async with run.bar(WHEN + MINUTE) as this:
            await this.signal.write_signal_data({"n": 1})

            async def is_stored() -> bool:
                return await stored(witness) == 1

            await wait_until(is_stored)
            await this.risk("r").write_position_data([{"n": 1}])
            await this.storage.write_storage_data([{"id": this.new_id(), "n": 1}])
            this.session["n"] = 1
            assert await stored(witness) == 1
        for n in range(2, 2 * BARS_OF_A_COMMIT):
            await bar(run, n)
        with_body_error = run.bar(WHEN + 1000 * MINUTE)
        async with discarded(with_body_error):
            await with_body_error.signal.write_signal_data({"n": -1})
    assert await stored(witness) == 2 * BARS_OF_A_COMMIT


async def test_an_error_of_the_strategy_stores_the_bars_before_it(persist: Registry, witness: Registry) -> None:
    """It gets out of the run as it was; so does a cancellation."""
    async with discarded(run := run_of(persist)):
        await bar(run, 0)
        async with run.bar(WHEN + MINUTE) as this:
            await this.signal.write_signal_data({"n": 1})
            raise ZeroDivisionError
    assert await stored(witness) == 1

    async def strategy() -> None:
        async with run_of(persist) as run:
            await bar(run, 1)
            async with run.bar(WHEN + 2 * MINUTE) as this:
                await this.signal.write_signal_data({"n": 2})
                await asyncio.sleep(10)

    running = asyncio.create_task(strategy())
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await stored(witness) == 2
    async with run_of(witness) as run:  # the lease is free
        assert run.bars == 2


async def test_two_runs_at_once_in_one_process(persist: Registry) -> None:
    """Their bars alternate; adapters of the registry join the bar of their own task."""

    async def strategy(symbol: str) -> None:
        signal = await persist.signal(symbol, "trend", "binance")
        async with run_of(persist, symbol=symbol) as run:
            for n in range(20):
                async with run.bar(WHEN + n * MINUTE) as this:
                    await signal.write_signal_data({"n": n})
                    await asyncio.sleep(0)
                    assert await this.signal.read_signal_data() == {"n": n}
                    this.session["n"] = n

    await asyncio.gather(*(strategy(symbol) for symbol in "AB"))
    for symbol in "AB":
        assert await (await persist.signal(symbol, "trend", "binance")).read_signal_data() == {"n": 19}


# --- sessions ---


async def test_sessions_of_others(persist: Registry, container: Container) -> None:
    """One of another mode, or of the framework, is a `SettingsError` unless the run begins from nothing."""
    async with run_of(persist, Mode.PAPER) as run:
        await bar(run, 0)
    with pytest.raises(SettingsError, match=r"the session of the run .*paper.*restart=True"):
        await run_of(persist, Mode.LIVE).__aenter__()
    foreign: list[Any] = [{"position": 1}, {"id": run.id.replace("paper", "live"), "data": {}, "when": "x", "bars": 1}]
    for payload in foreign:
        await container.session_db_service.upsert("trend", "binance", "2024", "BTCUSDT", False, payload, WHEN)
        with pytest.raises(SettingsError, match="a session that no run has stored"):
            await run_of(persist, Mode.LIVE).__aenter__()
    async with run_of(persist, Mode.LIVE, restart=True) as run:
        assert (run.bars, run.session, run.seen(WHEN)) == (0, {}, False)
        await bar(run, 0)
    async with run_of(persist, Mode.LIVE) as run:
        assert (run.bars, run.session) == (1, {"n": 0})

    class Other(BaseModel):
        needed: str

        @classmethod
        def new(cls) -> "Other":
            return cls(needed="")

    with pytest.raises(SettingsError, match="needed"):
        await run_of(persist, Mode.LIVE, session=Other.new).__aenter__()


# --- backends ---


async def test_a_backend_without_transactions(tmp_path: Path) -> None:
    """A standalone MongoDB is a `SettingsError` that says what to do; with ``atomic=False`` the session is last."""
    async with private_mongod(tmp_path) as uri:
        settings = Settings(mongo_connection_string=SecretStr(f"{uri}test?directConnection=true"), redis_port=1)
        async with Container(settings) as container:
            persist = Registry(container)
            with pytest.raises(SettingsError, match="initiate"):
                await run_of(persist).__aenter__()
            async with run_of(persist, atomic=False) as run:
                for n in range(2):
                    await bar(run, n)
                    assert await stored(persist) == n + 1
                async with run.bar(WHEN + 2 * MINUTE) as this:
                    await this.candle("1m").write_candles_data([candle(0)])
                    assert await this.interval("b").claim_interval_data({}, "k")
                    await this.measure("b").write_measure_data({}, "k")
                    await this.measure("b").remove_measure_data("k")
                    this.session["n"] = 1
            assert not await (await persist.interval("b")).claim_interval_data({}, "k", WHEN)
            async with run_of(persist, atomic=False) as run:
                assert run.bars == 3
            with pytest.raises(SettingsError, match="initiate"):
                async with persist.checkpoint():
                    await (await persist.signal("s", "t", "e")).write_signal_data({})


async def test_a_backend_of_somebody_else(persist: Registry) -> None:
    """It is a `SettingsError` that says what a backend needs."""
    persist.use({})
    with pytest.raises(SettingsError, match="committer"):
        run_of(persist)


# --- speed ---


async def test_a_strategy_waits_for_a_slow_server(persist: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than two commits' worth of bars are in memory; the event loop goes on."""
    async with run_of(persist, commit_every=4) as run:
        committer: Any = run._committer
        commit, most = committer.commit, 0

        async def slow(parts: Any) -> None:
            await asyncio.sleep(0.02)
            await commit(parts)

        monkeypatch.setattr(committer, "commit", slow)
        for n in range(40):
            await bar(run, n)
            entries = [layer.of(run.adapters.storage.db.store) for layer in run._unit.layers]  # pyright: ignore
            most = max(most, sum(map(len, entries)))
        assert most <= 8
    assert await stored(persist) == 40


async def test_bars_with_large_payloads_are_stored_earlier(persist: Registry) -> None:
    """A transaction has to fit into the cache of the server, of which the embedded one has little."""
    large = {"rows": ["x" * 1000] * 200}  # not large enough to be encoded in a thread
    async with run_of(persist) as run:
        for n in range(BARS_OF_A_COMMIT):
            async with run.bar(WHEN + n * MINUTE) as this:
                await this.storage.write_storage_data([{"id": this.new_id(str(k)), **large} for k in range(5)])
    assert len(await (await persist.storage(True)).read_storage_data()) == 5 * BARS_OF_A_COMMIT


async def test_a_strategy_that_never_waits_lets_others_run(persist: Registry) -> None:
    """Each end of a bar gives way to the event loop, so that commits and renewals go on."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(other())
    async with run_of(persist) as run:
        await asyncio.sleep(0)
        before = turns
        for n in range(50):
            async with run.bar(WHEN + n * MINUTE):
                pass
        assert turns - before >= 50
    counting.cancel()
