"""What is measured: single reads and writes under load, candle windows, lists, iteration, a runner's minute, growth."""

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

from backtest_persist import Container, Registry, base_map
from tests.bench.baseline import Baseline
from tests.bench.floor import Floor
from tests.bench.measure import Figure, compare, load

__all__ = ("Bench",)

START = 1_600_000_020_000
MINUTE = 60_000
KEYS = 1000
PAYLOAD: dict[str, Any] = {"id": "s-1", "position": "long", "priceOpen": 42_000.5, "levels": [10, 20], "note": "x" * 60}


class Keys(base_map("bench", -1)):
    """A namespace for the iteration."""


class Bench:
    """The workloads over one container."""

    def __init__(self, container: Container, rounds: int, seconds: float) -> None:
        self.container = container
        self.rounds = rounds
        self.seconds = seconds
        self.baseline = Baseline(container)
        self.floor = Floor(container)

    async def run(self, *, quick: bool) -> AsyncIterator[Figure]:
        """All figures, one after the other."""
        db = self.container.signal_db_service
        for number in range(KEYS):
            await db.upsert(*_context(number), PAYLOAD)
        for callers in (1, 64) if quick else (1, 16, 64, 256):
            yield await self.reads(callers)
            yield await self.writes(callers)
            yield await self.mixed(callers)
        for size in (100, 1000) if quick else (100, 1000, 10_000):
            yield await self.candles_written(size)
            yield await self.candles_read(size)
        yield await self.columns(1000)
        yield await self.listing(1000 if quick else 10_000)
        yield await self.minutes(60 if quick else 31 * 1440)
        async for figure in self.iteration(10_000 if quick else 1_000_000):
            yield figure
        async for figure in self.growth((1000, 10_000) if quick else (1000, 10_000, 100_000, 1_000_000)):
            yield figure

    # --- single documents under load ---

    async def reads(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            return int(await self.baseline.read(*_context(number)) is not None)

        async def ours(number: int) -> int:
            return int(await self.container.signal_db_service.find_by_context(*_context(number)) is not None)

        target = {1: ">= 0.95", 64: ">= 12"}.get(callers, "")
        return await self._loaded(f"reads, {callers} callers", callers, base, ours, self._floor_read, target)

    async def writes(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            return int(bool((await self.baseline.write(*_context(number), PAYLOAD)).id))

        async def ours(number: int) -> int:
            return int(bool((await self.container.signal_db_service.upsert(*_context(number), PAYLOAD)).id))

        target = {1: ">= 0.95", 64: ">= 8"}.get(callers, "")
        return await self._loaded(f"writes, {callers} callers", callers, base, ours, self._floor_write, target)

    async def mixed(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            if number // callers % 10:
                return int(await self.baseline.read(*_context(number)) is not None)
            return int(bool((await self.baseline.write(*_context(number), PAYLOAD)).id))

        async def ours(number: int) -> int:
            db = self.container.signal_db_service
            if number // callers % 10:
                return int(await db.find_by_context(*_context(number)) is not None)
            return int(bool((await db.upsert(*_context(number), PAYLOAD)).id))

        return await self._loaded(f"90 % reads, 10 % writes, {callers} callers", callers, base, ours, None, "")

    async def _loaded(
        self,
        name: str,
        callers: int,
        base: Callable[[int], Awaitable[int]],
        ours: Callable[[int], Awaitable[int]],
        floor: Callable[[int, int], Awaitable[int]] | None,
        target: str,
    ) -> Figure:
        variants: dict[str, Callable[[], Awaitable[float]]] = {
            "baseline": lambda: load(callers, self.seconds, base),
            "ours": lambda: load(callers, self.seconds, ours),
        }
        if floor is not None:
            variants["floor"] = lambda: load(1, self.seconds, lambda number: floor(number, callers))
        return await compare(name, variants, unit="/s", rounds=self.rounds, target=target)

    async def _floor_read(self, number: int, callers: int) -> int:
        symbols = [_context(number * callers + offset)[0] for offset in range(callers)]
        return await self.floor.read(symbols, "trend", "binance")

    async def _floor_write(self, number: int, callers: int) -> int:
        symbols = [_context(number * callers + offset)[0] for offset in range(callers)]
        return await self.floor.write(symbols, "trend", "binance", PAYLOAD)

    # --- candles ---

    async def candles_written(self, size: int) -> Figure:
        fresh = count()
        db = self.container.candle_db_service

        async def base() -> float:
            symbol = f"W{next(fresh)}"
            return await _rate(min(size, 1000), self.baseline.write_candles(symbol, "b", _candles(min(size, 1000))))

        async def ours() -> float:
            return await _rate(size, db.create_many(f"W{next(fresh)}", "1m", "b", _candles(size)))

        async def floor() -> float:
            return await _rate(size, self.floor.write_candles(f"W{next(fresh)}", "b", _candles(size)))

        return await compare(
            f"candles written, {size:,} at once",
            {"baseline": base, "ours": ours, "floor": floor},
            unit="/s",
            rounds=self.rounds,
            target=">= 15" if size == 1000 else "",
        )

    async def candles_read(self, size: int) -> Figure:
        db, symbol = self.container.candle_db_service, f"R{size}"
        await db.create_many(symbol, "1m", "b", _candles(size))
        timestamps = [START + number * MINUTE for number in range(min(size, 1000))]

        async def ours() -> float:
            return await _rate(size, db.find_range(symbol, "1m", "b", START, size))

        return await compare(
            f"candles read, window of {size:,}",
            {
                "baseline": lambda: _rate(len(timestamps), self.baseline.read_candles(symbol, "b", timestamps)),
                "ours": ours,
                "floor": lambda: _rate(size, self.floor.read_candles(symbol, "b", START, START + size * MINUTE)),
            },
            unit="/s",
            rounds=self.rounds,
            target=">= 60" if size == 1000 else "",
        )

    async def columns(self, size: int) -> Figure:
        db, symbol = self.container.candle_db_service, f"R{size}"
        adapter = await Registry(self.container).candle(symbol, "1m", "b")

        async def ours() -> float:
            return await _rate(size, adapter.read_candle_columns(size, START))  # pyright: ignore

        return await compare(
            f"candles read as columns, window of {size:,}",
            {"rows": lambda: _rate(size, db.find_range(symbol, "1m", "b", START, size)), "ours": ours},
            unit="/s",
            rounds=self.rounds,
        )

    # --- lists and iteration ---

    async def listing(self, size: int) -> Figure:
        db = self.container.log_db_service
        await db.create_many({"id": f"{number}", "topic": "t", "args": [number]} for number in range(size))
        collection: Any = self.floor.signals.database["log-items"]

        async def ours() -> float:
            return await _rate(size, db.list_all())

        async def floor() -> float:
            return await _rate(size, collection.find({}).sort([("createDate", 1), ("_id", 1)]).to_list(None))

        return await compare(f"list of {size:,}", {"floor": floor, "ours": ours}, unit="/s", rounds=self.rounds)

    async def iteration(self, size: int) -> AsyncIterator[Figure]:
        keys, redis = Keys(self.container.redis_service), self.floor.redis
        for start in range(0, size, 1000):
            await keys.set_many([(f"k{number}", "v") for number in range(start, min(start + 1000, size))])
        rounds = self.rounds if size <= 100_000 else 1

        async def ours() -> float:
            seen = 0
            started = time.perf_counter()
            async for _ in keys.keys():
                seen += 1
            assert seen == size
            return time.perf_counter() - started

        async def floor() -> float:
            started = time.perf_counter()
            async for _ in redis.scan_iter(match=f"{self.floor.prefix}bench:*", count=100):
                pass
            return time.perf_counter() - started

        yield await compare(
            f"iteration over {size:,} keys", {"floor": floor, "ours": ours}, unit="s", rounds=rounds, better="lower"
        )
        gc.collect()
        tracemalloc.start()
        async for _ in keys.keys():
            pass
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield Figure(f"peak memory of it, {size:,} keys", "MiB", "lower", {"ours": [peak]}, "< 30")
        await keys.clear()

    # --- a runner ---

    async def minutes(self, size: int) -> Figure:
        """A minute of a backtest: a window of 100 candles and two states read, one state written."""
        persist = Registry(self.container)
        candles = await persist.candle("BTCUSDT", "1m", "b")
        await candles.write_candles_data(_candles(100 + min(size, 44_640)))
        trailing, exposure = await persist.state("s-1", "trailing"), await persist.state("s-1", "exposure")
        await exposure.write_state_data({"open": 2}, START)
        times: list[float] = []
        for minute in range(size):
            when = START + (100 + minute) * MINUTE
            started = time.perf_counter()
            window, _, _ = await asyncio.gather(
                candles.read_candles_data(100, when - 100 * MINUTE, when),
                trailing.read_state_data(when=when),
                exposure.read_state_data(when=when),
            )
            assert window is not None
            await trailing.write_state_data({"stop": window[-1]["close"], "minute": minute}, when)
            times.append((time.perf_counter() - started) * 1000)
        return Figure(f"virtual minute of a runner, {size:,} of them", "ms", "lower", {"ours": times}, "<= 3 median")

    # --- growth ---

    async def growth(self, sizes: tuple[int, ...]) -> AsyncIterator[Figure]:
        """The time of one read and one write as the collection grows."""
        db = self.container.signal_db_service
        reads: dict[str, list[float]] = {}
        writes: dict[str, list[float]] = {}
        stored = KEYS
        for size in sizes:
            for start in range(stored, size, 5000):
                await self.floor.fill([f"G{number}" for number in range(start, min(start + 5000, size))], PAYLOAD)
            stored = size
            names = [
                _context(number)[0] if number < KEYS else f"G{number}" for number in random.sample(range(size), 500)
            ]
            for kind, times in ((0, reads), (1, writes)):
                found: list[float] = []
                for name in names:
                    started = time.perf_counter()
                    if kind:
                        await db.upsert(name, "trend", "binance", PAYLOAD)
                    else:
                        await db.find_by_context(name, "trend", "binance")
                    found.append((time.perf_counter() - started) * 1000)
                times[f"{size:,}"] = found
        yield Figure("a read as the collection grows, by documents", "ms", "lower", reads, "within 1.5x")
        yield Figure("a write as the collection grows, by documents", "ms", "lower", writes, "within 1.5x")


def _context(number: int) -> tuple[str, str, str]:
    return f"S{number % KEYS}", "trend", "binance"


def _candles(size: int) -> list[dict[str, Any]]:
    numbers = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0}
    return [{"timestamp": START + number * MINUTE, **numbers, "volume": 1.0 + number} for number in range(size)]


async def _rate(size: int, work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return size / (time.perf_counter() - started)
