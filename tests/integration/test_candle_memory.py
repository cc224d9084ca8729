"""Candle memory: windows are what the store would answer, and cost no query where nothing is missing."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backtest_persist import Container, InvalidKeyError, InvalidPayloadError, Settings, SettingsError
from backtest_persist.contracts import CandleData
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.run import candle_chunks, candle_memory
from backtest_persist.run.candle_chunks import CHUNK_BYTES, SLOTS
from backtest_persist.run.candle_memory import CandleMemory
from tests.support.json_backend import open_dump

pytestmark = pytest.mark.parametrize("driver", ["motor"], indirect=True)

MINUTE = 60_000
START = 1_600_000_000_000 // (SLOTS * MINUTE) * SLOTS * MINUTE  # where a chunk begins
KEY = ("BTC/USDT:USDT", "1m", "binance")
STEPS = 80
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")


def candle(number: int, step: int = MINUTE) -> CandleData:
    return {
        "timestamp": START + number * step,
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0 + number % 7 / 8,
        "volume": float(number),
    }


def at(number: int) -> int:
    """When candle `number` of a minute closes."""
    return START + (number + 1) * MINUTE


def numbers(window: dict[str, Any] | list[CandleData]) -> list[int]:
    """The numbers of the candles of a window."""
    times = [row["timestamp"] for row in window] if isinstance(window, list) else window["timestamp"].tolist()
    return [(int(time) - START) // MINUTE for time in times]


def as_rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    assert tuple(columns) == COLUMNS
    for name, column in columns.items():
        assert column.dtype == ("int64" if name == "timestamp" else "float64")
        assert column.base is None, "a view gives access to candles that close later"
    values = (column.tolist() for column in columns.values())
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]


@pytest.fixture
async def stored(container: Container) -> CandleDbService:
    """The candles of a container, with indexes."""
    await container.candle_db_service.wait_for_init()
    return container.candle_db_service


@pytest.fixture
async def memory(stored: CandleDbService) -> AsyncIterator[CandleMemory]:
    """A memory that keeps all that a test uses."""
    memory = CandleMemory(stored, 64 << 20)
    yield memory
    await memory.close()


async def settled(memory: CandleMemory) -> None:
    """Wait until nothing is loaded ahead any more."""
    while memory._tasks:  # pyright: ignore[reportPrivateUsage]
        await asyncio.wait(memory._tasks)  # pyright: ignore[reportPrivateUsage]


def held_bytes(memory: CandleMemory) -> int:
    """Count the bytes of the chunks in memory: 48 for each candle, and about 448 for one that is kept as a dict."""
    chunks: Any = memory._chunks._by_use  # pyright: ignore[reportPrivateUsage]
    return sum(2048 + 48 * chunk.count + 448 * len(chunk.rows or ()) for chunk in chunks)


class Walk:
    """A random walk over some series: windows are compared with the store while others write into it."""

    def __init__(self, seed: int, db: CandleDbService, other: CandleDbService, max_bytes: int) -> None:
        self.chance = random.Random(seed)
        self.db = db
        self.other = other
        self.max_bytes = max_bytes
        self.memory = CandleMemory(db, max_bytes)
        self.series = [(f"A{seed}", "1m", "x"), (f"A{seed}", "5m", "x"), (f"B{seed}", "1m", "x")]
        self.missing: dict[tuple[str, str, str], list[int]] = {}
        self.pending: dict[tuple[str, str, str], dict[int, CandleData]] = {key: {} for key in self.series}

    async def prepare(self) -> None:
        """Store series with gaps of all lengths, and one that begins late."""
        for place, key in enumerate(self.series):
            missing = {n for n in range(100) if self.chance.random() < (0, 0.03, 0.5)[place]}
            begin = self.chance.randrange(90)
            missing.update(range(begin, begin + self.chance.choice([0, 5, 60])))
            self.missing[key] = sorted(missing)
            await self.db.store(*key, [self.candle(key, n) for n in range(100) if n not in missing])

    def candle(self, key: tuple[str, str, str], number: int) -> CandleData:
        return candle(number, 5 * MINUTE if key[1] == "5m" else MINUTE)

    async def step(self) -> None:
        key = self.chance.choice(self.series)
        move = self.chance.random()
        if move < 0.08 and self.missing[key]:
            filled = self.take(key)
            await self.other.store(*key, [self.candle(key, n) for n in filled])
        elif move < 0.12 and self.missing[key]:
            written = [self.candle(key, n) for n in self.take(key)]
            await self.db.store(*key, written)
            self.memory.add(*key, written)
        elif move < 0.16 and self.missing[key]:
            self.pending[key] |= {row["timestamp"]: row for n in self.take(key) for row in [self.candle(key, n)]}
        elif move < 0.18 and self.pending[key]:
            written = list(self.pending[key].values())
            await self.db.store(*key, written)
            self.memory.add(*key, written)
            self.pending[key] = {}
        elif move < 0.19:
            self.memory.forget()
        elif move < 0.25:
            await asyncio.gather(*(self.compare(self.chance.choice(self.series)) for _ in range(4)))
        else:
            for _ in range(self.chance.choice([1, 1, 5])):
                await self.compare(key)

    def take(self, key: tuple[str, str, str]) -> list[int]:
        """Choose some missing candles that lie together."""
        start = self.chance.randrange(len(self.missing[key]))
        taken = self.missing[key][start : start + self.chance.choice([1, 1, 3, 10])]
        self.missing[key] = [n for n in self.missing[key] if n not in taken]
        return taken

    async def compare(self, key: tuple[str, str, str]) -> None:
        step = 5 * MINUTE if key[1] == "5m" else MINUTE
        limit = self.chance.choice([0, 1, 2, 10, 10, 10, 30, 200])
        until = START + self.chance.randrange(-5, 130) * step + self.chance.choice([0, 0, 0, 1, -1, step // 2])
        pending = self.pending[key] if self.chance.random() < 0.8 else None
        window, rows = await asyncio.gather(
            self.memory.window(*key, limit, until, pending=pending),
            self.memory.rows(*key, limit, until, pending=pending),
        )
        expected = {row["timestamp"]: row for row in await self.db.find_last_data(*key, limit, until)}
        if pending:
            expected = {time: row for time, row in pending.items() if time + step <= until} | expected
        last = [expected[time] for time in sorted(expected)[max(len(expected) - limit, 0) :]]
        assert rows == last, (key, limit, until)
        assert [type(value) for row in rows[:1] for value in row.values()] == ([int] + [float] * 5) * len(rows[:1])
        assert as_rows(window) == last, (key, limit, until)
        assert held_bytes(self.memory) == self.memory.nbytes <= self.max_bytes


@pytest.mark.parametrize(
    ("backend", "max_bytes"), [("mongo", (1 << 20, 24_000, 3_000, 0)), ("json", (24_000,))], ids=["mongo", "json"]
)
async def test_a_window_is_what_the_store_would_answer(
    stored: CandleDbService,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    max_bytes: tuple[int, ...],
) -> None:
    """Whatever is missing, written, pending or evicted, a window is that of `find_last`, in copies."""
    monkeypatch.setattr(candle_chunks, "SLOTS", 16)
    monkeypatch.setattr(candle_memory, "_MAX_GAP", 40)
    monkeypatch.setattr(candle_chunks, "CHUNK_BYTES", 2816)
    monkeypatch.setattr(candle_chunks, "_ROW_READS", 4)
    async with Container(settings) as container:
        for seed, bound in enumerate(max_bytes):
            if backend == "json":
                adapters: list[Any] = [await open_dump(tmp_path).candle("A", "1m", "x") for _ in range(2)]
                db, other = (adapter.db for adapter in adapters)
            else:
                db, other = stored, container.candle_db_service
            walk = Walk(seed, db, other, bound)
            await walk.prepare()
            for _ in range(STEPS if bound else 10):
                await walk.step()
            await walk.memory.close()


async def test_a_backtest_asks_once_for_each_chunk(stored: CandleDbService, memory: CandleMemory) -> None:
    """Windows without gaps cost no find while they stay in a chunk, nor does the next chunk, which is loaded ahead."""
    count = SLOTS + 300
    await stored.create_many(*KEY, [candle(n) for n in range(count)])
    before = stored.stats.reads
    for number in range(99, count):
        window = await memory.window(*KEY, 100, at(number))
        assert window["volume"][[0, -1]].tolist() == [number - 99, number]
        if number % 50 == 0:
            await asyncio.sleep(0.001)
    await settled(memory)
    assert stored.stats.reads - before == 2
    assert numbers(await memory.rows(*KEY, 300, at(SLOTS + 99))) == [*range(SLOTS - 200, SLOTS + 100)]
    assert stored.stats.reads - before == 2


@pytest.mark.parametrize("reads", [1, 1000], ids=["kept as plain data", "kept as columns"])
async def test_no_candle_closes_after_until(
    stored: CandleDbService, memory: CandleMemory, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """However `until` lies to the candles in memory, later ones are neither in a window nor behind it, nor changed."""
    monkeypatch.setattr(candle_chunks, "_ROW_READS", reads)
    await stored.create_many(*KEY, [candle(n) for n in range(300)])
    await memory.window(*KEY, 300, at(299))
    for until, last in ((at(150), 150), (at(150) - 1, 149), (at(150) + MINUTE - 1, 150)):
        for given in (until, datetime.fromtimestamp(until / 1000, UTC)):
            window = await memory.window(*KEY, 10, given)
            assert numbers(window) == [*range(last - 9, last + 1)]
            assert all(column.base is None and column.flags.owndata for column in window.values())
    window = await memory.window(*KEY, 10, at(150))
    window["close"][:] = np.nan
    rows = await memory.rows(*KEY, 10, at(150))
    assert rows == [candle(n) for n in range(141, 151)]
    rows[0]["close"] = 0.0
    assert await memory.rows(*KEY, 10, at(150)) == [candle(n) for n in range(141, 151)]
    assert numbers(await memory.window(*KEY, 10, at(-1))) == []
    for written in (range(310, 320), range(300, 310)):  # the second ones move the first ones on in their chunk
        await stored.create_many(*KEY, [candle(n) for n in written])
        for last in (written[-1], 319, 319):
            assert numbers(await memory.rows(*KEY, 5, at(last))) == [*range(last - 4, last + 1)]
    assert held_bytes(memory) == memory.nbytes


async def test_a_gap_costs_one_find_at_each_read(
    stored: CandleDbService, memory: CandleMemory, settings: Settings
) -> None:
    """Gaps are asked for again together, nothing else is, and what another process fills is seen by the next read."""
    gaps = {100, 120, *range(400, 410)}
    await stored.create_many(*KEY, [candle(n) for n in range(500) if n not in gaps])
    await memory.window(*KEY, 50, at(60))

    async def finds(number: int, expected: list[int]) -> int:
        before = stored.stats.reads
        assert numbers(await memory.window(*KEY, 50, at(number))) == expected
        return stored.stats.reads - before

    whole = [n for n in range(500) if n not in gaps]
    assert await finds(130, [n for n in whole if n <= 130][-50:]) == 1
    assert await finds(130, [n for n in whole if n <= 130][-50:]) == 1
    assert await finds(170, [*range(121, 171)]) == 0
    assert await finds(405, [*range(350, 400)]) == 1
    assert await finds(420, [n for n in whole if n <= 420][-50:]) == 1
    async with Container(settings) as other:
        await other.candle_db_service.create_many(*KEY, [candle(n) for n in (120, *range(400, 410))])
    assert await finds(130, [n for n in range(80, 131) if n != 100]) == 1
    assert await finds(420, [*range(371, 421)]) == 1
    assert await finds(420, [*range(371, 421)]) == 0
    # a chunk that was stored only in part when it was loaded is not loaded again and again
    async with Container(settings) as other:
        await other.candle_db_service.create_many(*KEY, [candle(n) for n in range(500, 700)])
    assert await finds(500, [*range(451, 501)]) == 1
    before = stored.stats.reads
    for number in range(501, 700):
        await memory.window(*KEY, 50, at(number))
    assert stored.stats.reads == before
    # where a series begins, or has not gone on for long, one find tells
    assert await finds(10, [*range(11)]) == 1
    assert await finds(10**6, [*range(650, 700)]) <= 2
    assert await finds(10**6, [*range(650, 700)]) == 1


async def test_nothing_is_asked_about_the_future(
    stored: CandleDbService, memory: CandleMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In live trading one candle more is read at each bar, not a chunk that does not exist yet."""
    ends: list[float] = []
    find_columns = stored.find_columns

    async def recorded(symbol: str, interval: str, exchange_name: str, since: datetime, limit: int) -> Any:
        if limit:  # otherwise there is no query
            ends.append(since.timestamp() * 1000 + limit * MINUTE)
        return await find_columns(symbol, interval, exchange_name, since, limit)

    monkeypatch.setattr(stored, "find_columns", recorded)
    now = int(time.time() * 1000)
    last = (now - START) // MINUTE - 1
    for number in range(last - 40, last + 1):
        await stored.create(*KEY, candle(number))
        rows = await memory.rows(*KEY, 10, at(number))
        assert numbers(rows)[-1] == number
    assert len(ends) > 30
    assert max(ends) <= time.time() * 1000
    late = await memory.rows(*KEY, 10, at(last + 5))
    assert numbers(late) == [*range(last - 9, last + 1)], "whatever the clock of this machine says"
    await settled(memory)


async def test_concurrent_windows_share_what_they_ask_for(stored: CandleDbService, memory: CandleMemory) -> None:
    """A chunk, and a gap in it, is asked for once by all who need it in one turn."""
    await stored.create_many(*KEY, [candle(n) for n in range(300) if n != 200])
    before = stored.stats.reads
    windows = await asyncio.gather(*(memory.window(*KEY, 20, at(n % 150 + 30)) for n in range(200)))
    assert [numbers(window)[-1] for window in windows] == [n % 150 + 30 for n in range(200)]
    assert stored.stats.reads - before == 1
    windows = await asyncio.gather(*(memory.window(*KEY, 20, at(210)) for _ in range(50)))
    assert stored.stats.reads - before == 2
    assert len({id(window["close"]) for window in windows}) == 50
    await stored.create_many(*KEY, [candle(200)])
    assert numbers(await memory.window(*KEY, 20, at(210))) == [*range(191, 211)]


class Held:
    """Holds what finds have read, as a slow network does, until it is released."""

    def __init__(self, db: CandleDbService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = asyncio.Event()
        self.release = asyncio.Event()
        self._find_columns = db.find_columns
        monkeypatch.setattr(db, "find_columns", self.find_columns)

    async def find_columns(self, *arguments: Any) -> Any:
        found = await self._find_columns(*arguments)
        self.read.set()
        await self.release.wait()
        return found


async def test_a_window_waits_for_no_query_that_may_be_out_of_date(
    stored: CandleDbService, memory: CandleMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candle that was stored before a window is asked for is in it, also while an earlier query is under way."""
    await stored.create_many(*KEY, [candle(n) for n in range(300) if n not in (200, 250)])
    for number in (200, 250):  # when the chunk is loaded, and when a gap in it is asked for
        held = Held(stored, monkeypatch)
        first = asyncio.create_task(memory.window(*KEY, 20, at(number + 5)))
        await held.read.wait()
        await stored.create_many(*KEY, [candle(number)])
        second = asyncio.create_task(memory.window(*KEY, 20, at(number + 5)))
        await asyncio.sleep(0.05)
        assert [first.done(), second.done()] == [False, False]
        held.release.set()
        await first
        assert numbers(await second) == [*range(number - 14, number + 6)]
        monkeypatch.undo()


async def test_a_caller_that_is_cancelled_harms_nobody(
    stored: CandleDbService, memory: CandleMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it shares with others goes on; so do windows whose load `forget` or `close` ends."""
    await stored.create_many(*KEY, [candle(n) for n in range(300)])
    held = Held(stored, monkeypatch)
    before = stored.stats.reads
    first, second = (asyncio.create_task(memory.window(*KEY, 20, at(n))) for n in (100, 110))
    await held.read.wait()
    first.cancel()
    await asyncio.wait([first])
    held.release.set()
    assert first.cancelled()
    assert numbers(await second) == [*range(91, 111)]
    assert stored.stats.reads - before == 1
    for end in (memory.forget, memory.close):
        memory.forget()
        held.read.clear()
        held.release.clear()
        window = asyncio.create_task(memory.window(*KEY, 20, at(100)))
        await held.read.wait()
        ended = end()
        if ended is not None:
            await ended
        assert numbers(await window) == [*range(81, 101)]
        held.release.set()
    assert memory.nbytes == 0


async def test_the_memory_is_bounded_and_can_be_off(stored: CandleDbService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least recently used chunks go first; with 0, and for windows that are too large, the store is asked."""
    other = ("ETH", "1m", "binance")
    for key in (KEY, other):
        await stored.create_many(*key, [candle(n) for n in range(3 * SLOTS)])
    memory = CandleMemory(stored, int(3.5 * CHUNK_BYTES))
    await memory.window(*KEY, 10, at(100))
    for number in range(50, 3 * SLOTS, SLOTS):
        await memory.window(*KEY, 10, at(100))
        before = stored.stats.reads
        assert numbers(await memory.window(*other, 10, at(number)))[-1] == number
        assert stored.stats.reads - before == 1
        assert memory.nbytes <= 3.5 * CHUNK_BYTES
    before = stored.stats.reads
    await memory.window(*KEY, 10, at(100))
    assert stored.stats.reads == before, "it was used before the others"
    assert len((await memory.window(*KEY, 3 * SLOTS, at(3 * SLOTS)))["close"]) == 3 * SLOTS
    assert memory.nbytes <= 3.5 * CHUNK_BYTES
    await memory.close()
    assert memory.nbytes == 0
    for off in (memory, CandleMemory(stored, 0)):
        for _ in range(2):
            before = stored.stats.reads
            assert await off.rows(*KEY, 10, at(100)) == [candle(n) for n in range(91, 101)]
            assert numbers(await off.window(*KEY, 10, at(100), pending={})) == [*range(91, 101)]
            assert stored.stats.reads - before == 2
        assert off.nbytes == 0
    monkeypatch.setitem(sys.modules, "numpy", None)
    off = CandleMemory(stored, 64 << 20)
    assert await off.rows(*KEY, 10, at(100)) == [candle(n) for n in range(91, 101)]
    with pytest.raises(SettingsError, match="pip install numpy"):
        await off.window(*KEY, 10, at(100))


async def test_what_is_written_is_in_windows_before_and_after_it_is_stored(
    stored: CandleDbService, memory: CandleMemory
) -> None:
    """Pending candles close gaps without a find; of a stored one the stored numbers are returned."""
    await stored.create_many(*KEY, [candle(n) for n in range(100)])
    await memory.window(*KEY, 10, at(99))
    pending = {row["timestamp"]: row for row in map(candle, range(100, 110))}
    pending[START + 99 * MINUTE] = {**candle(99), "close": 9.5}
    before = stored.stats.reads
    for window in (memory.window, memory.rows):
        assert numbers(await window(*KEY, 20, at(104), pending=pending)) == [*range(85, 105)]
    rows = await memory.rows(*KEY, 20, at(109), pending=pending)
    assert rows == [candle(n) for n in range(90, 110)]
    rows[-1]["close"] = 0.0
    assert pending[START + 109 * MINUTE] == candle(109)
    assert stored.stats.reads == before
    assert numbers(await memory.window(*KEY, 5, at(104))) == [*range(95, 100)], "they are not kept"
    await stored.create_many(*KEY, [candle(n) for n in range(100, 110)])
    memory.add(*KEY, list(pending.values()))
    before = stored.stats.reads
    assert await memory.rows(*KEY, 20, at(109)) == [candle(n) for n in range(90, 110)]
    assert stored.stats.reads == before


async def test_what_others_change_is_seen_after_forget(
    stored: CandleDbService, memory: CandleMemory, container: Container
) -> None:
    """A candle that is replaced or deleted while it is in memory, or whose database is dropped, stays until then."""
    await stored.create_many(*KEY, [candle(n) for n in range(100)])
    assert await memory.rows(*KEY, 10, at(50)) == [candle(n) for n in range(41, 51)]
    await stored.replace_range(*KEY, START + 50 * MINUTE, START + 51 * MINUTE, [{**candle(50), "close": 9.5}])
    await stored.delete_range(*KEY, START + 45 * MINUTE, START + 46 * MINUTE)
    assert await memory.rows(*KEY, 10, at(50)) == [candle(n) for n in range(41, 51)]
    memory.forget()
    rows = await memory.rows(*KEY, 10, at(50))
    assert numbers(rows) == [n for n in range(40, 51) if n != 45]
    assert rows[-1]["close"] == 9.5
    await container.mongo_service.database["candle-items"].drop()
    assert numbers(await memory.rows(*KEY, 5, at(50))) == [*range(46, 51)]
    memory.forget()
    assert await memory.rows(*KEY, 5, at(50)) == []


async def test_a_damaged_candle_matters_to_its_windows_only(
    stored: CandleDbService, memory: CandleMemory, container: Container
) -> None:
    """A candle of another program that cannot be read is an error of the windows that hold it, not of its chunk."""
    await stored.create_many(*KEY, [candle(n) for n in range(100)])
    collection = container.mongo_service.database["candle-items"]
    await collection.update_one({"timestamp": START + 50 * MINUTE}, {"$set": {"close": "x"}})
    template: Any = await collection.find_one({"timestamp": START})
    del template["_id"]
    await collection.insert_one({**template, "timestamp": START + 60 * MINUTE + 1, "close": "x"})
    for _ in range(2):
        for number in (20, 21, 75, 76):
            assert numbers(await memory.window(*KEY, 10, at(number))) == [*range(number - 9, number + 1)]
    before = stored.stats.reads
    for number in (77, 78, 79):
        await memory.window(*KEY, 10, at(number))
    assert stored.stats.reads - before == 3, "nothing is loaded ahead where it cannot be read"
    for window in (memory.window, memory.rows):
        with pytest.raises(InvalidPayloadError, match="close"):
            await window(*KEY, 10, at(55))
    await collection.update_many({"close": "x"}, {"$set": {"close": 11}})
    assert numbers(await memory.window(*KEY, 10, at(55))) == [*range(46, 56)], "also by a number of another type"
    assert numbers(await memory.window(*KEY, 10, at(65))) == [*range(56, 66)]
    # the same of what was stored after its chunk was loaded
    memory.forget()
    await memory.window(*KEY, 10, at(99))
    await stored.create_many(*KEY, [candle(n) for n in range(100, 110)])
    await collection.update_one({"timestamp": START + 109 * MINUTE}, {"$set": {"close": "x"}})
    assert numbers(await memory.window(*KEY, 10, at(101))) == [*range(92, 102)]
    before = stored.stats.reads
    for number in (102, 103):
        assert numbers(await memory.window(*KEY, 10, at(number)))[-1] == number
    assert stored.stats.reads - before == 2


async def test_arguments_are_those_of_the_store(stored: CandleDbService, settings: Settings) -> None:
    """What `find_last` refuses is refused, whatever is in memory; dates of the first years are windows as well."""
    memory = CandleMemory(stored, 1 << 20)
    await stored.create_many(*KEY, [candle(n) for n in range(10)])
    await memory.window(*KEY, 5, at(9))
    bad: list[tuple[Any, ...]] = [
        (*KEY, -1, at(9)),
        (*KEY, True, at(9)),
        (*KEY, 5, 1_600_000_000),
        (*KEY, 5, 10**15),
        (*KEY, 5, datetime(2020, 1, 1)),
        (*KEY, 5, None),
        ("BTC", "7m", "x", 5, at(9)),
        ("", "1m", "x", 5, at(9)),
        (["BTC"], "1m", "x", 5, at(9)),
    ]
    for arguments in bad:
        for call in (memory.window, memory.rows):
            with pytest.raises(InvalidKeyError):
                await call(*arguments)
    with pytest.raises(InvalidKeyError):
        memory.add("BTC", "7m", "x", [])
    day = 86_400_000
    days = [{**candle(0), "timestamp": datetime.fromtimestamp(n * 86_400, UTC)} for n in range(-5, 30)]
    for interval in ("8h", "1d"):
        await stored.create_many("OLD", interval, "nyse", days)
        until = datetime.fromtimestamp(20 * 86_400, UTC)
        rows = await memory.rows("OLD", interval, "nyse", 25, until)
        assert rows == await stored.find_last_data("OLD", interval, "nyse", 25, until)
        assert rows[-1]["timestamp"] == 19 * day
        assert len(await memory.rows("OLD", interval, "nyse", 10_000, -(10**13))) == 0
        assert len(await memory.rows("OLD", interval, "nyse", 10_000, until)) == 25
    await memory.close()
