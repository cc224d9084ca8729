"""Workloads: single reads and writes under load, candle windows, lists, iteration, a runner's minute, growth."""

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from statistics import median
from typing import Any

from backtest_persist import Container, LogRow, Registry, base_map
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.run.candle_memory import CandleMemory
from tests.bench.bars import bars
from tests.bench.baseline import SIGNAL, STATE, Baseline
from tests.bench.floor import Floor
from tests.bench.measure import Figure, compare, load

__all__ = ("GROUPS", "Bench")

START = 1_600_000_020_000
MINUTE = 60_000
KEYS = 1000
PAYLOAD: dict[str, Any] = {"id": "s-1", "position": "long", "priceOpen": 42_000.5, "levels": [10, 20], "note": "x" * 60}
_writes = count(1)


def payload() -> dict[str, Any]:
    """A payload that differs from all others: an unchanged document is no write to mongod."""
    return {**PAYLOAD, "n": next(_writes)}


class Keys(base_map("bench", -1)):
    """A namespace for the iteration."""


class Bench:
    """The workloads over one container."""

    def __init__(self, container: Container, other: Container, rounds: int, seconds: float) -> None:
        self.container = container
        self.other = other
        self.rounds = rounds
        self.seconds = seconds
        self.baseline = Baseline(container)
        self.floor = Floor(container)

    async def close(self) -> None:
        """Close the clients of the baseline and the floor."""
        await self.baseline.redis.aclose()
        await self.floor.redis.aclose()

    async def run(self, groups: Sequence[str], *, quick: bool) -> AsyncIterator[Figure]:
        """The figures of these groups, one after the other."""
        db = self.container.signal_db_service
        for number in range(KEYS):
            await db.upsert(*_context(number), PAYLOAD)
        for name in groups:
            async with aclosing(GROUPS[name](self, quick)) as figures:
                async for figure in figures:
                    yield figure

    async def documents(self, quick: bool) -> AsyncGenerator[Figure]:
        """Single documents, for several numbers of callers."""
        for callers in (1, 64) if quick else (1, 16, 64, 256):
            yield await self.reads(callers)
            yield await self.writes(callers)
            yield await self.mixed(callers)

    async def both_drivers(self, quick: bool) -> AsyncGenerator[Figure]:
        """One driver against the other."""
        for callers in (1, 64):
            yield await self.drivers(callers)

    async def candles(self, quick: bool) -> AsyncGenerator[Figure]:
        """Candles written, and read by queries."""
        for size in (100, 1000) if quick else (100, 1000, 10_000):
            yield await self.candles_written(size)
            yield await self.candles_read(size)
        yield await self.columns(1000)
        yield await self.column_commands(1000 if quick else 10_000)
        async for figure in self.year(10_000 if quick else 525_600):
            yield figure

    async def frames(self, quick: bool) -> AsyncGenerator[Figure]:
        """The minutes of a year as a frame, by the bare driver and as plain data."""
        size, key = 10_000 if quick else 525_600, ("FRAME", "1m", "b")
        db = self.container.candle_db_service
        await db.create_many(*key, _candles(size))
        yield await compare(
            f"frame of {size:,} candles",
            {
                "rows": lambda: _rate(size, db.find_data(*key, START, size)),
                "ours": lambda: _rate(size, db.find_frame(*key)),
                "floor": lambda: _rate(size, self.floor.read_columns("FRAME", "b", START, START + size * MINUTE)),
            },
            unit="/s",
            rounds=self.rounds,
            target=">= 0.67 of the bare driver",
        )
        gc.collect()
        tracemalloc.start()
        await db.find_frame(*key)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield Figure(f"peak memory of it, {size:,} candles", "MiB", "lower", {"ours": [peak]}, "< 200")

    async def bars(self, quick: bool) -> AsyncGenerator[Figure]:
        """Bars of a strategy in a run, and windows from memory."""
        async for figure in self.windows_from_memory(100):
            yield figure
        settings = self.container.settings.model_copy(update={"id_memory": 0})
        async with Container(settings) as plain:
            async for figure in bars(self.container, plain, self.baseline, self.rounds, quick=quick):
                yield figure

    async def lists(self, quick: bool) -> AsyncGenerator[Figure]:
        """Lists, a minute of a runner, and the iteration over keys."""
        yield await self.listing(1000 if quick else 10_000)
        yield await self.minutes(60 if quick else 31 * 1440)
        async for figure in self.iteration(10_000 if quick else 1_000_000):
            yield figure

    async def sizes(self, quick: bool) -> AsyncGenerator[Figure]:
        """Reads and writes as a collection grows."""
        async for figure in self.growth((1000, 10_000) if quick else (1000, 10_000, 100_000, 1_000_000)):
            yield figure

    # --- single documents under load ---

    async def reads(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            return int(await self._read_literally(number) is not None)

        async def ours(number: int) -> int:
            return int(await self.container.signal_db_service.find_by_context(*_context(number)) is not None)

        target = {1: ">= 0.95", 64: ">= 12"}.get(callers, "")
        return await self._loaded(f"reads, {_callers(callers)}", callers, base, ours, self._floor_read, target)

    async def writes(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            return int(bool((await self._write_literally(number)).id))

        async def ours(number: int) -> int:
            return int(bool((await self.container.signal_db_service.upsert(*_context(number), payload())).id))

        target = {1: ">= 0.95", 64: ">= 8"}.get(callers, "")
        return await self._loaded(f"writes, {_callers(callers)}", callers, base, ours, self._floor_write, target)

    async def mixed(self, callers: int) -> Figure:
        async def base(number: int) -> int:
            if number // callers % 10:
                return int(await self._read_literally(number) is not None)
            return int(bool((await self._write_literally(number)).id))

        async def ours(number: int) -> int:
            db = self.container.signal_db_service
            if number // callers % 10:
                return int(await db.find_by_context(*_context(number)) is not None)
            return int(bool((await db.upsert(*_context(number), payload())).id))

        return await self._loaded(f"90 % reads, 10 % writes, {_callers(callers)}", callers, base, ours, None, "")

    async def adapters(self, quick: bool, callers: int = 64) -> AsyncGenerator[Figure]:
        """What a strategy calls one after the other, with ids that are known, and writes of many strategies at once."""
        persist = Registry(self.container)
        adapters = [await persist.signal(*_context(number)) for number in range(KEYS)]

        async def read(number: int) -> int:
            return int(await adapters[number % KEYS].read_signal_data() is not None)

        async def read_literally(number: int) -> int:
            return int(await self._read_literally(number) is not None)

        async def write(number: int) -> int:
            await adapters[number % KEYS].write_signal_data(payload())
            return 1

        async def write_literally(number: int) -> int:
            return int(bool((await self._write_literally(number)).id))

        yield await self._loaded("reads of adapters, 1 caller", 1, read_literally, read, None, ">= 1.25")
        yield await self._loaded("writes of adapters, 1 caller", 1, write_literally, write, None, ">= 1.2")
        settings = self.container.settings.model_copy(update={"id_memory": 0})
        async with Container(settings) as without_ids:

            async def upsert(number: int) -> int:
                db = without_ids.signal_db_service
                return int(bool((await db.upsert(*_context(number), payload())).id))

            variants: dict[str, Callable[[], Awaitable[float]]] = {
                "upserts": lambda: load(callers, self.seconds, upsert),
                "ours": lambda: load(callers, self.seconds, write),
            }
            name = f"writes of adapters, {_callers(callers)}: against upserts with CC_ID_MEMORY=0"
            yield await compare(name, variants, unit="/s", rounds=self.rounds, target=">= 1.3")

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
            "literal": lambda: load(callers, self.seconds, base),
            "ours": lambda: load(callers, self.seconds, ours),
        }
        if floor is not None:
            variants["floor"] = lambda: load(1, self.seconds, lambda number: floor(number, callers))
        return await compare(name, variants, unit="/s", rounds=self.rounds, target=target)

    async def _read_literally(self, number: int) -> Any:
        symbol, strategy, exchange = _context(number)
        context = {"symbol": symbol, "strategyName": strategy, "exchangeName": exchange}
        return await self.baseline.read(SIGNAL, f"{exchange}:{strategy}:{symbol}", context)

    async def _write_literally(self, number: int) -> Any:
        symbol, strategy, exchange = _context(number)
        context = {"symbol": symbol, "strategyName": strategy, "exchangeName": exchange}
        return await self.baseline.write(SIGNAL, f"{exchange}:{strategy}:{symbol}", context, {"payload": payload()})

    async def _floor_read(self, number: int, callers: int) -> int:
        symbols = [_context(number * callers + offset)[0] for offset in range(callers)]
        return await self.floor.read(symbols, "trend", "binance")

    async def _floor_write(self, number: int, callers: int) -> int:
        symbols = [_context(number * callers + offset)[0] for offset in range(callers)]
        return await self.floor.write(symbols, "trend", "binance", payload())

    async def drivers(self, callers: int) -> Figure:
        """The same reads by the other driver."""

        def reads(container: Container) -> Callable[[], Awaitable[float]]:
            async def read(number: int) -> int:
                return int(await container.signal_db_service.find_by_context(*_context(number)) is not None)

            return lambda: load(callers, self.seconds, read)

        ours, other = (one.mongo_service.settings.mongo_driver for one in (self.container, self.other))
        return await compare(
            f"reads, {_callers(callers)}: {ours} against {other}",
            {other: reads(self.other), "ours": reads(self.container)},
            unit="/s",
            rounds=self.rounds,
        )

    # --- candles ---

    async def candles_written(self, size: int) -> Figure:
        fresh = count()
        db = self.container.candle_db_service

        async def base() -> float:
            symbol = f"W{size}-{next(fresh)}"
            return await _rate(min(size, 1000), self.baseline.write_candles(symbol, "b", _candles(min(size, 1000))))

        async def ours() -> float:
            return await _rate(size, db.create_many(f"W{size}-{next(fresh)}", "1m", "b", _candles(size)))

        async def floor() -> float:
            return await _rate(size, self.floor.write_candles(f"W{size}-{next(fresh)}", "b", _candles(size)))

        return await compare(
            f"candles written, {size:,} at once",
            {"literal": base, "ours": ours, "floor": floor},
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
                "literal": lambda: _rate(len(timestamps), self.baseline.read_candles(symbol, "b", timestamps)),
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

    async def column_commands(self, size: int) -> Figure:
        """The commands for columns: for plain documents, and the pipeline that converts numbers of all types."""
        store: Any = self.container.candle_db_service.candles
        query = Series(f"R{size}", "1m", "b").window(START, START + size * MINUTE)
        return await compare(
            f"columns by documents against a pipeline, window of {size:,}",
            {
                "pipeline": lambda: _rate(size, store._convert(query)),
                "ours": lambda: _rate(size, store._find_raw(query)),
            },
            unit="/s",
            rounds=self.rounds,
        )

    async def windows_from_memory(self, size: int) -> AsyncIterator[Figure]:
        """Windows that move on by a candle, as those of a backtest do, from memory and by a query each."""
        db, key, count = self.container.candle_db_service, ("MEMORY", "1m", "b"), 20_000
        await db.create_many(*key, _candles(count))
        memory = CandleMemory(db, 64 << 20)

        def rate(find: Callable[[int], Awaitable[Any]], windows: int) -> Callable[[], Awaitable[float]]:
            async def run() -> float:
                started = time.perf_counter()
                for number in range(windows):
                    await find(START + number * MINUTE)
                return windows / (time.perf_counter() - started)

            return run

        kinds: tuple[tuple[str, Any, Any, str], ...] = (
            ("columns", memory.window, db.find_columns, ">= 100"),
            ("plain data", memory.rows, db.find_data, ">= 20"),
        )
        for kind, window, find, target in kinds:

            def ours(start: int, window: Any = window) -> Awaitable[Any]:
                return window(*key, size, start + size * MINUTE)

            def store(start: int, find: Any = find) -> Awaitable[Any]:
                return find(*key, start, size)

            yield await compare(
                f"windows of {size:,} from memory, as {kind}",
                {"store": rate(store, 200), "ours": rate(ours, count - size)},
                unit="/s",
                rounds=self.rounds,
                target=target,
            )
        await memory.close()

    async def year(self, size: int) -> AsyncIterator[Figure]:
        """The minutes of a year, as columns and as plain data, and the search for the gaps in them."""
        db, key = self.container.candle_db_service, ("YEAR", "1m", "b")
        await db.create_many(*key, _candles(size))
        variants: dict[str, Callable[[], Awaitable[float]]] = {
            "rows": lambda: _rate(size, db.find_data(*key, START, size)),
            "ours": lambda: _rate(size, db.find_columns(*key, START, size)),
        }
        name = f"candles read as columns, window of {size:,}"
        yield await compare(name, variants, unit="/s", rounds=min(self.rounds, 2))
        gaps = {"ours": lambda: _rate(size, db.find_gaps(*key, START, START + size * MINUTE))}
        yield await compare(f"gaps searched for in {size:,} candles", gaps, unit="/s", rounds=min(self.rounds, 2))

    # --- lists and iteration ---

    async def listing(self, size: int) -> Figure:
        db = self.container.log_db_service
        await db.create_many({"id": f"{number}", "topic": "t", "args": [number]} for number in range(size))
        decoded = self.container.mongo_service.collection("log-items")
        collection: Any = self.floor.signals.database["log-items"]
        order = [("createDate", 1), ("_id", 1)]

        async def base() -> float:
            async def read() -> None:
                found = [LogRow.model_validate(document) async for document in decoded.find({}, sort=order)]
                assert len(found) == size

            return await _rate(size, read())

        async def floor() -> float:
            return await _rate(size, collection.find({}).sort(order).to_list(None))

        return await compare(
            f"list of {size:,}",
            {"literal": base, "ours": lambda: _rate(size, db.list_all()), "floor": floor},
            unit="/s",
            rounds=self.rounds,
        )

    async def iteration(self, size: int) -> AsyncIterator[Figure]:
        """All keys with their values; the literal algorithm gets them one by one, and is stopped after 10,000."""
        keys, redis, pattern = Keys(self.container.redis_service), self.floor.redis, f"{self.floor.prefix}bench:*"
        for start in range(0, size, 1000):
            await keys.set_many([(f"k{number}", "v") for number in range(start, min(start + 1000, size))])

        async def base() -> float:
            seen, started = 0, time.perf_counter()
            async for name in redis.scan_iter(match=pattern, count=100):
                assert await redis.get(name) == b"v"
                seen += 1
                if seen == 10_000:
                    break
            return seen / (time.perf_counter() - started)

        async def ours() -> float:
            seen, started = 0, time.perf_counter()
            async for _ in keys.iterate():
                seen += 1
            assert seen == size
            return seen / (time.perf_counter() - started)

        async def floor() -> float:
            seen, started, cursor = 0, time.perf_counter(), None
            while cursor != 0:
                cursor, names = await redis.scan(cursor or 0, match=pattern, count=100)
                seen += len(await redis.mget(names)) if names else 0
            return seen / (time.perf_counter() - started)

        yield await compare(
            f"iteration over {size:,} keys and values",
            {"literal": base, "ours": ours, "floor": floor},
            unit="/s",
            rounds=self.rounds,
        )
        gc.collect()
        tracemalloc.start()
        async for _ in keys.iterate():
            pass
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield Figure(f"peak memory of it, {size:,} keys", "MiB", "lower", {"ours": [peak]}, "< 30")
        await keys.clear()

    # --- a runner ---

    async def minutes(self, size: int) -> Figure:
        """Minutes of a backtest: a window of 100 candles and two states read, one state written.

        A value is the median of a part of them; after each part the literal algorithm does 20 of its own.
        """
        persist = Registry(self.container)
        candles = await persist.candle("BTCUSDT", "1m", "b")
        await candles.write_candles_data(_candles(100 + size))
        trailing, exposure = await persist.state("s-1", "trailing"), await persist.state("s-1", "exposure")
        await exposure.write_state_data({"open": 2}, START)
        await trailing.write_state_data({"stop": 0.0}, START)

        async def ours(when: int) -> None:
            window, _, _ = await asyncio.gather(
                candles.read_candles_data(100, when - 100 * MINUTE, when),
                trailing.read_state_data(when=when),
                exposure.read_state_data(when=when),
            )
            assert window is not None
            await trailing.write_state_data({"stop": window[-1]["close"], "when": when}, when)

        async def base(when: int) -> None:
            context, key = {"signalId": "s-1", "bucketName": "literal"}, "s-1:literal"
            other = {"signalId": "s-1", "bucketName": "exposure"}
            await self.baseline.read_candles("BTCUSDT", "b", range(when - 100 * MINUTE, when, MINUTE))
            await self.baseline.read(STATE, key, context)
            await self.baseline.read(STATE, "s-1:exposure", other)
            await self.baseline.write(STATE, key, context, {"payload": {"stop": 11.0, "when": when}, "when": when})

        figure = Figure(
            f"minute of a runner, {size:,} of them", "ms", "lower", {"literal": [], "ours": []}, "<= 3 ms median"
        )
        part = size // self.rounds
        for number in range(self.rounds):
            start = START + (100 + number * part) * MINUTE
            for name, work, length in (("ours", ours, part), ("literal", base, 20)):
                times: list[float] = []
                for minute in range(length):
                    started = time.perf_counter()
                    await work(start + minute * MINUTE)
                    times.append((time.perf_counter() - started) * 1000)
                figure.values[name].append(median(times))
        return figure

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
                        await db.upsert(name, "trend", "binance", payload())
                    else:
                        await db.find_by_context(name, "trend", "binance")
                    found.append((time.perf_counter() - started) * 1000)
                times[f"{size:,}"] = found
        yield Figure("a read as the collection grows, by documents", "ms", "lower", reads, "within 1.5x")
        yield Figure("a write as the collection grows, by documents", "ms", "lower", writes, "within 1.5x")


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"


def _context(number: int) -> tuple[str, str, str]:
    return f"S{number % KEYS}", "trend", "binance"


def _candles(size: int) -> list[dict[str, Any]]:
    numbers = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0}
    return [{"timestamp": START + number * MINUTE, **numbers, "volume": 1.0 + number} for number in range(size)]


async def _rate(size: int, work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return size / (time.perf_counter() - started)


GROUPS: Mapping[str, Callable[[Bench, bool], AsyncGenerator[Figure]]] = {
    "documents": Bench.documents,
    "adapters": Bench.adapters,
    "drivers": Bench.both_drivers,
    "candles": Bench.candles,
    "frames": Bench.frames,
    "bars": Bench.bars,
    "lists": Bench.lists,
    "sizes": Bench.sizes,
}
"""The groups of workloads, by name, in their order."""
