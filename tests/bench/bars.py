"""Bars: what a bar of a strategy costs in a run, by the adapters one by one, and by the literal algorithm.

One by one, each call asks Redis for its id (``CC_ID_MEMORY=0``). A bar reads two windows of 100 candles and three
values, and writes four. Every write changes what is stored, as an unchanged document is no write to mongod.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

from backtest_persist import Container, Mode, Registry
from backtest_persist.run.run import Run
from tests.bench.baseline import RISK, SIGNAL, STATE, STORAGE, Baseline
from tests.bench.measure import Figure, compare

__all__ = ("bars",)

START = 1_600_000_020_000
MINUTE = 60_000
WINDOW = 100
SYMBOL, STRATEGY, EXCHANGE = "BARS", "trend", "b"


async def bars(
    container: Container, plain: Container, baseline: Baseline, rounds: int, *, quick: bool
) -> AsyncIterator[Figure]:
    """Compare bars of a backtest, with the same keys and with new documents, and those of live trading."""
    persist, without_a_run = Registry(container), Registry(plain)
    length = 500 if quick else 3000
    candles = [
        {"timestamp": START + n * MINUTE, "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 1.0 + n}
        for n in range(WINDOW + length)
    ]
    await container.candle_db_service.create_many(SYMBOL, "1m", EXCHANGE, candles)
    numbers = count(1)
    for fresh, name, target in (
        (False, "the same keys in each", ">= 25"),
        (True, "new documents in each", ">= 10"),
    ):
        variants = {
            "one by one": _timed(60, lambda bars, fresh=fresh: _one_by_one(without_a_run, numbers, bars, fresh=fresh)),
            "ours": _timed(length, lambda bars, fresh=fresh: _run(persist, numbers, bars, Mode.BACKTEST, fresh=fresh)),
        }
        yield await compare(f"bars of a backtest, {name}", variants, unit="/s", rounds=rounds, target=target)
    variants = {
        "literal": _timed(5, lambda bars: _literally(baseline, numbers, bars)),
        "ours": _timed(length, lambda bars: _run(persist, numbers, bars, Mode.BACKTEST, fresh=False)),
    }
    yield await compare("bars of a backtest", variants, unit="/s", rounds=rounds)
    variants = {
        "one by one": _timed(200, lambda bars: _one_by_one(without_a_run, numbers, bars, fresh=False)),
        "ours": _timed(200, lambda bars: _run(persist, numbers, bars, Mode.LIVE, fresh=False)),
    }
    yield await compare("bars of live trading", variants, unit="/s", rounds=rounds, target=">= 3")


def _timed(bars: int, work: Callable[[int], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
    async def run() -> float:
        started = time.perf_counter()
        await work(bars)
        return bars / (time.perf_counter() - started)

    return run


async def _run(persist: Registry, numbers: "count[int]", bars: int, mode: Mode, *, fresh: bool) -> None:
    run: Run[dict[str, Any]] = persist.run(
        strategy=STRATEGY, exchange=EXCHANGE, symbol=SYMBOL, frame=str(next(numbers)), mode=mode
    )
    async with run:
        before = f"{next(numbers)}"
        for number in range(bars):
            this = next(numbers)
            async with run.bar(START + (WINDOW + number) * MINUTE) as bar:
                for _ in range(2):
                    await bar.candles("1m", WINDOW, as_columns=True)
                id = f"{this}" if fresh else "s"
                await bar.state(before if fresh else "s", "trailing").read_state_data()
                await bar.signal.read_signal_data()
                await bar.risk("r").read_position_data()
                await bar.state(id, "trailing").write_state_data({"stop": this / 2})
                await bar.signal.write_signal_data({"id": id, "n": this})
                await bar.storage.write_storage_data([{"id": id, "n": this}])
                await bar.risk("r").write_position_data([{"id": id, "n": this}])
                bar.session["n"] = this
                before = id


async def _one_by_one(persist: Registry, numbers: "count[int]", bars: int, *, fresh: bool) -> None:
    """Do the same without a run, the session included, each call after the one before it."""
    candles = await persist.candle(SYMBOL, "1m", EXCHANGE)
    signal = await persist.signal(SYMBOL, STRATEGY, EXCHANGE)
    storage, risk = await persist.storage(True), await persist.risk("r", EXCHANGE)
    session = await persist.session(STRATEGY, EXCHANGE, "one by one", SYMBOL, True)
    before = "s"
    for number in range(bars):
        this, when = next(numbers), START + (WINDOW + number) * MINUTE
        for _ in range(2):
            await candles.read_candles_data(WINDOW, when - WINDOW * MINUTE, when)
        id = f"{this}" if fresh else "s"
        await (await persist.state(before, "trailing")).read_state_data(when=when)
        await signal.read_signal_data()
        await risk.read_position_data(when)
        await (await persist.state(id, "trailing")).write_state_data({"stop": this / 2}, when)
        await signal.write_signal_data({"id": id, "n": this})
        await storage.write_storage_data([{"id": id, "n": this}])
        await risk.write_position_data([{"id": id, "n": this}], when)
        await session.write_session_data({"n": this}, when)
        before = id


async def _literally(baseline: Baseline, numbers: "count[int]", bars: int) -> None:
    state = {"signalId": "s", "bucketName": "literal"}
    signal = {"symbol": "LITERAL", "strategyName": STRATEGY, "exchangeName": EXCHANGE}
    risk = {"riskName": "literal", "exchangeName": EXCHANGE}
    keys = {"state": "s:literal", "signal": f"{EXCHANGE}:{STRATEGY}:LITERAL", "risk": f"{EXCHANGE}:literal"}
    for number in range(bars):
        this, when = next(numbers), START + (WINDOW + number) * MINUTE
        for _ in range(2):
            await baseline.read_candles(SYMBOL, EXCHANGE, range(when - WINDOW * MINUTE, when, MINUTE))
        await baseline.read(STATE, keys["state"], state)
        await baseline.read(SIGNAL, keys["signal"], signal)
        await baseline.read(RISK, keys["risk"], risk)
        await baseline.write(STATE, keys["state"], state, {"payload": {"stop": this / 2}, "when": when})
        await baseline.write(SIGNAL, keys["signal"], signal, {"payload": {"id": "s", "n": this}})
        stored = {"backtest": True, "signalId": "literal"}
        await baseline.write(STORAGE, "backtest:literal", stored, {"payload": {"id": "literal", "n": this}})
        await baseline.write(RISK, keys["risk"], risk, {"positions": [{"n": this}], "when": when})
