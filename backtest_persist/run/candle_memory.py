"""Candle memory: windows of closed candles without a query, as the store would answer them."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from backtest_persist.connections import joined
from backtest_persist.contracts import CandleData, When
from backtest_persist.core.candles.ohlcv import candle_columns, import_numpy
from backtest_persist.core.instants import MAX_SECONDS, MIN_MICROSECONDS
from backtest_persist.core.keys import checked_limit, checked_timestamp
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import InvalidPayloadError, SettingsError
from backtest_persist.run.candle_chunks import (
    CANDLE_BYTES,
    SLOTS,
    CandleChunks,
    Columns,
    Part,
    SeriesChunks,
    columns_of,
    is_whole,
    merged_columns,
    rows_of,
    to_rows,
    up_to,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("CandleMemories", "CandleMemory", "Pending")

T = TypeVar("T")

Pending = Mapping[int, CandleData]
"""Candles that are written but not committed, by opening time in ms UTC."""

_MIN_MS, _MAX_MS = MAX_SECONDS, MIN_MICROSECONDS
"""An int from the first on and below the second is an instant, whatever the settings."""
_MAX_GAP = 8 * SLOTS
"""The opening times of the largest range that is read to fill the gaps in it."""
_EPOCH = datetime.fromtimestamp(0, UTC)


class CandleMemory:
    """Keeps closed candles in memory, and answers as `CandleDbService.find_last` does.

    A window is what is stored: gaps in it are asked of the store at each read, so that a candle which another process
    stores is seen by the next one. A candle that another process replaces or deletes while it is in memory is seen
    after `forget`: a closed candle never changes.

    What is kept may hold candles that close after `until`, because they are loaded ahead; they are never returned. All
    that is returned is copied.

    A memory belongs to one event loop. `max_bytes` bounds what it keeps; with 0, or without numpy, each window is asked
    of the store, and so is one that would take more than half of the memory.
    """

    def __init__(self, db: CandleDbService, max_bytes: int) -> None:
        self._db = db
        self._max_bytes = max_bytes if max_bytes and _has_numpy() else 0
        self._chunks = CandleChunks(self._max_bytes)
        self._loads: dict[tuple[SeriesChunks, int], asyncio.Task[None]] = {}
        self._unsent: dict[Hashable, asyncio.Task[Columns]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def nbytes(self) -> int:
        """The bytes of what is in memory."""
        return self._chunks.nbytes

    async def window(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        limit: int,
        until: When,
        *,
        pending: Pending | None = None,
    ) -> Columns:
        """Return the last `limit` stored candles that have closed by `until` as numpy arrays, oldest first.

        These are `timestamp` as int64 (ms UTC) and the others as float64. Candles in `pending` count as stored; of a
        time that is known to be stored, the stored one is returned.

        Raises `InvalidKeyError` as `CandleDbService.find_last` does, and what the store raises.
        """
        series, newest, count = self._checked(symbol, interval, exchange_name, limit, until)
        if self._is_too_large(count):
            return candle_columns(await self._find_rows(series, newest, count, pending))
        parts = series.last(newest, count)
        if not is_whole(parts, newest, count):
            return await self._find_window(series, newest, count, pending)
        self._use(series, parts, newest)
        return columns_of(parts)

    async def rows(
        self,
        symbol: str,
        interval: str,
        exchange_name: str,
        limit: int,
        until: When,
        *,
        pending: Pending | None = None,
    ) -> list[CandleData]:
        """Return the same as `window`, as plain data."""
        series, newest, count = self._checked(symbol, interval, exchange_name, limit, until)
        if self._is_too_large(count):
            return await self._find_rows(series, newest, count, pending)
        parts = series.last(newest, count)
        if not is_whole(parts, newest, count):
            return to_rows(await self._find_window(series, newest, count, pending))
        self._use(series, parts, newest)
        return rows_of(parts)

    def add(self, symbol: str, interval: str, exchange_name: str, candles: Iterable[CandleData]) -> None:
        """Keep candles that this process has just stored, so that they need not be read.

        One that is known already stays as it is, as in the store.
        """
        series = self._chunks.series(symbol, interval, exchange_name)
        if self._max_bytes and (added := list(candles)):
            series.add(candle_columns(added))

    def forget(self) -> None:
        """Forget all candles; what is being read now is not kept either."""
        self._chunks = CandleChunks(self._max_bytes)
        for task in self._loads.values():
            task.cancel()
        self._loads = {}
        self._unsent = {}

    async def close(self) -> None:
        """Forget all candles, keep none any more, and wait until nothing is being read."""
        self._max_bytes = 0
        self.forget()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- one window ---

    def _checked(
        self, symbol: str, interval: str, exchange_name: str, limit: int, until: When
    ) -> tuple[SeriesChunks, int, int]:
        """Return the chunks of a series, the last opening time that has closed by `until`, and the checked `limit`."""
        series = self._chunks.series(symbol, interval, exchange_name)
        if type(limit) is not int or limit < 0:
            limit = checked_limit(limit)
        if type(until) is not int or not _MIN_MS <= until < _MAX_MS:
            until = checked_timestamp(until, "until", self._db.allows_early_times)
        return series, until - until % series.step - series.step, limit

    def _is_too_large(self, limit: int) -> bool:
        return 2 * limit * CANDLE_BYTES > self._max_bytes

    def _use(self, series: SeriesChunks, parts: Sequence[Part], newest: int) -> None:
        """Keep chunks from eviction, and load the next one in the background once that is worth it."""
        if not parts:
            return
        for part in parts:
            series.owner.touch(part[0])
        chunk = parts[0][0]
        if newest >= chunk.prefetch_from and newest // series.span == chunk.index:
            chunk.prefetch_from = math.inf
            if series.owner.has_room_ahead():
                self._load(series, range(chunk.index + 1, chunk.index + 2))

    async def _find_window(self, series: SeriesChunks, newest: int, limit: int, pending: Pending | None) -> Columns:
        """Return a window of which something is not in memory."""
        oldest = newest - (limit - 1) * series.step
        if newest // series.span not in series.chunks:
            for load in self._load(series, range(oldest // series.span, newest // series.span + 1)):
                await asyncio.wait([load])
                if not load.cancelled():  # by `forget`; the store is asked below
                    await joined(load)
        parts = series.last(newest, limit)
        self._use(series, parts, newest)
        known = columns_of(parts)
        if pending and (written := [pending[at] for at in sorted(pending) if at <= newest]):
            known = up_to(merged_columns(known, candle_columns(written)), newest, limit)
        times = known["timestamp"]
        if len(times) == limit and times[0] == oldest:
            return known
        found = await self._find_missing(series, times, newest, limit)
        return up_to(merged_columns(known, found), newest, limit)

    async def _find_missing(self, series: SeriesChunks, times: "NDArray[Any]", newest: int, limit: int) -> Columns:
        """Find what a window lacks beside known candles, the last ones up to `newest`, whose `times` are given."""
        first, last = _missing(times, newest, series.step)
        if len(times) == limit and last - first < _MAX_GAP * series.step:
            end = max(_by_now(series.gap_end(newest)), newest + series.step) if last == newest else last + series.step
            try:
                return await self._shared((series, first, end), lambda: self._find_range(series, first, end))
            except InvalidPayloadError:  # perhaps of a candle outside of the window; the query below knows
                series.mark_damaged(newest // series.span)
        count = limit - len(times) + int(times.searchsorted(last, "right"))
        return await self._shared((series, count, last, "last"), lambda: self._find_last(series, count, last))

    # --- what is asked of the store ---

    def _load(self, series: SeriesChunks, indices: range) -> "set[asyncio.Task[None]]":
        """Load chunks that are not in memory, successive ones at once; returns the tasks that do so."""
        loads = self._loads
        missing = [index for index in indices if index not in series.chunks]
        unasked = [index for index in missing if (series, index) not in loads]
        for _, group in groupby(enumerate(unasked), lambda item: item[1] - item[0]):
            successive = [index for _, index in group]
            task = self._start(self._load_chunks(series, successive))
            keys = [(series, index) for index in successive]
            loads.update(dict.fromkeys(keys, task))
            task.add_done_callback(lambda _, keys=keys: [loads.pop(key) for key in keys])
        return {loads[series, index] for index in missing}

    async def _load_chunks(self, series: SeriesChunks, indices: Sequence[int]) -> None:
        start, end = indices[0] * series.span, _by_now((indices[-1] + 1) * series.span)
        try:
            await self._find_range(series, start, end, loaded=indices)
        except InvalidPayloadError:  # perhaps of a candle that no window needs; their own queries know
            for index in indices:
                series.mark_damaged(index)

    async def _find_range(self, series: SeriesChunks, start: int, end: int, *, loaded: Sequence[int] = ()) -> Columns:
        start = max(start, series.step - _MAX_MS)
        count = max(end - start, 0) // series.step
        return series.add(await self._db.find_columns(*series.key, _instant(start), count), loaded=loaded)

    async def _find_last(self, series: SeriesChunks, limit: int, newest: int) -> Columns:
        rows = await self._db.find_last_data(*series.key, limit, _instant(newest + series.step))
        return series.add(candle_columns(rows))

    async def _find_rows(
        self, series: SeriesChunks, newest: int, limit: int, pending: Pending | None
    ) -> list[CandleData]:
        """Find a whole window."""
        rows = await self._db.find_last_data(*series.key, limit, _instant(newest + series.step))
        if not pending:
            return rows
        candles = {at: cast("CandleData", dict(candle)) for at, candle in pending.items() if at <= newest}
        candles |= {row["timestamp"]: row for row in rows}
        return [candles[at] for at in sorted(candles)[max(len(candles) - limit, 0) :]]

    async def _shared(self, key: Hashable, find: Callable[[], Coroutine[Any, Any, Columns]]) -> Columns:
        """Find something together with those who ask for it in the same turn of the event loop.

        Nobody joins a query that was sent: a candle may have been stored since.
        """
        unsent = self._unsent

        async def send() -> Columns:
            await asyncio.sleep(0)
            del unsent[key]
            return await find()

        if key not in unsent:
            unsent[key] = self._start(send())
        return await joined(unsent[key])

    def _start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that no caller cancels, and whose error is nobody's unless somebody waits for it."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


def _missing(times: "NDArray[Any]", newest: int, step: int) -> tuple[int, int]:
    """Return the first and the last missing opening time from the first of ordered `times` on up to `newest`.

    If none is missing there, the last one is that before the first of them.
    """
    if not len(times):
        return newest, newest
    before_gaps = (times[1:] - times[:-1] != step).nonzero()[0]
    is_trailing = times[-1] < newest
    if len(before_gaps):
        first, last = int(times[before_gaps[0]]) + step, int(times[before_gaps[-1] + 1]) - step
    else:
        first, last = int(times[-1]) + step, int(times[0]) - step
    return first, newest if is_trailing else last


def _by_now(end: int) -> int:
    """Return the end of what is read ahead, which is now at the latest: no candle that opens later is stored."""
    return min(end, int(time.time() * 1000))


def _instant(timestamp: int) -> When:
    """Return an instant that a store accepts whatever its settings, even if it is one of the first years after 1970."""
    return timestamp if timestamp <= 0 else _EPOCH + timedelta(milliseconds=timestamp)


def _has_numpy() -> bool:
    try:
        import_numpy()
    except SettingsError:
        return False
    return True


class CandleMemories:
    """The candle memories of one backend, one for each event loop; the runs of a loop share it as long as one lasts."""

    def __init__(self, db: Callable[[], CandleDbService], max_bytes: Callable[[], int]) -> None:
        self._db = db
        self._max_bytes = max_bytes
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[CandleMemory, int]] = WeakKeyDictionary()

    @asynccontextmanager
    async def shared(self) -> AsyncGenerator[CandleMemory]:
        """Yield the memory of the running event loop; the last one who leaves closes it."""
        loop = asyncio.get_running_loop()
        memory, users = self._open.get(loop) or (CandleMemory(self._db(), self._max_bytes()), 0)
        self._open[loop] = memory, users + 1
        try:
            yield memory
        finally:
            users = self._open[loop][1] - 1
            if users:
                self._open[loop] = memory, users
            else:
                del self._open[loop]
                await memory.close()
