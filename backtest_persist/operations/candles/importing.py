"""`import_candles`: a file of candles stored as a series, and every row that is not stored named with the reason."""

import asyncio
import os
import re
import time
from array import array
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from anyio.to_thread import run_sync

from backtest_persist.contracts import CandleData, When
from backtest_persist.core.candles.input import check_candles
from backtest_persist.core.candles.ohlcv import NUMBERS, ImpossibleCandleError, Series, candle_numbers
from backtest_persist.core.candles.report import CandleReport
from backtest_persist.core.candles.session_days import session_day
from backtest_persist.core.keys import checked_timestamp
from backtest_persist.core.mongo_store import Restored
from backtest_persist.core.persist_instance import Services
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError
from backtest_persist.operations.candles.detection import Options, open_reading
from backtest_persist.operations.candles.files import CandleFile
from backtest_persist.operations.candles.ranges import count_candles
from backtest_persist.operations.candles.reading import Chunk, SkippedRow, in_ms
from backtest_persist.operations.candles.times import EPOCH, MS, DateOrder, Unit
from backtest_persist.operations.progress import NoProgress, Progress

__all__ = ("CandlesImported", "RowOfFile", "import_candles")


_EARLIEST = 10**11
"""A file that was modified before this, in 1973, has no date."""
_BLOCK = 512
_OUTLIER = "it has a price in another unit than the rows around it; to store it, give allow_outliers (--allow-outliers)"
_CANDLE = re.compile(r"\bcandle (\d+)\b")

Candle = dict[str, Any]


class RowOfFile(NamedTuple):
    """A row of a file, and the opening time of its candle in ms UTC."""

    line: int
    timestamp: int


@dataclass
class CandlesImported:
    """The report of an import of candles; times are opening times in ms UTC."""

    file: str
    layout: str = ""
    """The layout that was detected, in words."""
    noun: str = "line"
    """What is counted by the numbers of rows: a line of CSV, a row of Parquet and feather, an entry of JSON."""
    rows: int = 0
    """How many rows the file has, without header and blank lines."""
    new: int = 0
    """How many candles were stored, or would be in a dry run."""
    same: int = 0
    """How many were stored before with the same numbers, or are in the file more than once."""
    different: list[RowOfFile] = field(default_factory=list[RowOfFile])
    """Those that are stored with other numbers, which were kept."""
    open: list[RowOfFile] = field(default_factory=list[RowOfFile])
    """Those that had not closed at `as_of`, or without it when the file was written, and are not stored."""
    skipped: list[SkippedRow] = field(default_factory=list[SkippedRow])
    """Those that are no candles, each with the reason."""
    ignored: tuple[str, ...] = ()
    """The names of the columns that a stored candle does not have."""
    rounded: int = 0
    """How many have a number of more digits than a float holds, which is stored as the nearest float."""
    widened: int = 0
    """How many have a high or low that missed the body by a rounding error, and was set to it."""
    first: int | None = None
    """The first time of a candle that had closed."""
    last: int | None = None
    """The last time of such a candle."""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all that has closed is stored as it is in the file."""
        return not self.skipped and not self.different


async def import_candles(
    ioc: Services,
    file: str | os.PathLike[str],
    symbol: str,
    interval: str,
    exchange_name: str,
    *,
    unit: Unit | None = None,
    columns: Sequence[str] | None = None,
    tz: str | None = None,
    date_order: DateOrder | None = None,
    decimal: Literal[".", ","] | None = None,
    no_volume: bool = False,
    allow_outliers: bool = False,
    session_length: timedelta | int | None = None,
    as_of: When | None = None,
    replace: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CandlesImported:
    """Store the candles of a file, in one of the layouts of exchanges and programs, as a series.

    The layout and the unit of times are detected. `InvalidPayloadError`, before anything is stored, for a file that can
    be read in two ways, for one that holds no candles, and for one of another interval; `SettingsError` for one that
    cannot be opened. A single row that is no candle is reported and does not stop the import.

    Of rows of one time the first is taken; one that differs from it is skipped. A candle that is stored already is
    kept, so that an import can be repeated, or resumed after an interruption. With `replace`, what is stored in the
    range of the file is deleted before, if the file differs from it: the file is read as a whole first, and one with a
    row that cannot be stored is an `InvalidPayloadError`. A read that begins meanwhile, or after a failure, finds the
    range incomplete. With `dry_run` nothing is written.

    `unit` is that of times as numbers, `columns` are the names of the columns in their order, `tz` is the zone of times
    that have none, `date_order` says whether 02.03.2024 begins with the day or the month, and `decimal` is what
    separates decimals. With `no_volume` 0 is stored as the volume. A row with a price in another unit than those around
    it is skipped unless `allow_outliers` is set; see `CandleDbService.store`. `session_length`, a timedelta or ms, is
    for daily candles of sessions that do not open at 00:00 UTC: each is stored under the UTC day in which it closes.

    A candle that had not closed at `as_of`, when the exchange was asked, is not stored. By default, that is the last
    one if it had not closed when the file was last modified.
    """
    started = time.perf_counter()
    series = Series(symbol, interval, exchange_name)
    db = ioc.db_service(CandleDbService)
    if session_length is not None:
        session_day(0, session_length)
        if interval != "1d":
            raise InvalidKeyError(f"session_length is for candles of 1d, not {interval}.")
    options = Options(unit, columns, tz, date_order, decimal, no_volume, session_length)
    asked = None if as_of is None else checked_timestamp(as_of, "as_of", db.allows_early_times)
    source = await run_sync(CandleFile, file)
    progress = progress or NoProgress()

    async def read(dry: bool) -> _Importer:
        report = CandlesImported(str(source.path))
        importer = _Importer(db, series, report, dry, asked, source.modified, allow_outliers)
        await _import(source, series, options, importer, progress)
        return importer

    progress.begin(source.size * (2 if replace and not dry_run else 1))
    if replace and not dry_run:
        await _delete_replaced(db, series, await read(True))
    report = (await read(dry_run)).report
    report.seconds = time.perf_counter() - started
    return report


async def _import(
    source: CandleFile, series: Series, options: Options, importer: "_Importer", progress: Progress
) -> None:
    """Read a file once."""
    position = 0
    with ExitStack() as stack:
        reading = await run_sync(stack.enter_context, open_reading(source, series, options))
        importer.report.ignored, importer.report.noun = reading.ignored, reading.noun
        async with aclosing(_read_ahead(reading.chunks())) as chunks:
            async for chunk in chunks:
                await _undivided(importer.add(chunk))
                progress.advance(chunk.position - position)
                position = chunk.position
        importer.report.layout = reading.layout
    importer.end()
    progress.advance(source.size - position)


async def _delete_replaced(db: CandleDbService, series: Series, importer: "_Importer") -> None:
    """Delete what is stored in the range of a file that was read, unless it is the same."""
    checked = importer.report
    if checked.skipped:
        line, reason = checked.skipped[0]
        raise InvalidPayloadError(
            f"{checked.file}: nothing was replaced, because of rows that cannot be stored ({len(checked.skipped):,}), "
            f"such as {checked.noun} {line:,}: {reason}. Correct or remove them."
        )
    if checked.first is None or checked.last is None:
        return
    end = checked.last + series.step
    key = (series.symbol, series.interval, series.exchange_name)
    missing = count_candles(await db.candles.find_gaps(series, checked.first, end), series.step)
    stored = (end - checked.first) // series.step - missing
    if checked.different or stored > checked.same - importer.repeated:
        await db.delete_range(*key, EPOCH + checked.first * MS, EPOCH + (checked.last + 1) * MS)


async def _read_ahead(chunks: Iterator[Chunk]) -> AsyncGenerator[Chunk]:
    """Iterate over the chunks of a file; while one is being stored, a thread reads the next one."""
    reading = asyncio.create_task(run_sync(next, chunks, None))
    try:
        while (chunk := await reading) is not None:
            reading = asyncio.create_task(run_sync(next, chunks, None))
            yield chunk
    finally:  # the file is not closed while a thread reads it
        await asyncio.gather(reading, return_exceptions=True)


async def _undivided(storing: Coroutine[Any, Any, None]) -> None:
    """Store a chunk as a whole, even if the caller is cancelled meanwhile."""
    task = asyncio.create_task(storing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


class _Importer:
    """Stores chunks of rows, or compares them with what is stored, and adds to the report."""

    def __init__(
        self,
        db: CandleDbService,
        series: Series,
        report: CandlesImported,
        dry_run: bool,
        as_of: int | None,
        modified: int,
        allow_outliers: bool,
    ) -> None:
        self._db, self._series, self.report = db, series, report
        self._dry_run = dry_run
        self._first_rows = _FirstRows(series.step)
        self._as_of, self._allow_outliers = as_of, allow_outliers
        self._modified = modified if as_of is None and modified > _EARLIEST else None
        self._open: list[tuple[int, Candle]] = []
        """The rows that had not closed when the file was modified: the last one, unless that time is another's."""
        self.repeated = 0
        """How many rows repeat an earlier one of the file."""

    async def add(self, chunk: Chunk) -> None:
        """Store the rows of a chunk."""
        report = self.report
        report.rows += chunk.rows
        report.skipped += chunk.skipped
        rows = list(zip(chunk.lines, chunk.candles, strict=True))
        if self._modified is None:
            await self._put(rows, self._as_of)
            return
        self._open += await self._put(rows, self._modified)
        if len({candle["timestamp"] for _, candle in self._open}) > 1:
            rows, self._open, self._modified = self._open, [], None  # it was modified, or copied, with another date
            await self._put(rows, None)

    def end(self) -> None:
        """Complete the report."""
        self.report.open += [RowOfFile(line, in_ms(candle["timestamp"])) for line, candle in self._open]
        self.report.skipped.sort()
        self.report.different.sort()

    async def _put(self, rows: list[tuple[int, Candle]], as_of: int | None) -> list[tuple[int, Candle]]:
        """Store rows and report them; returns those that are open, which are reported only if `as_of` is certain."""
        key = (self._series.symbol, self._series.interval, self._series.exchange_name)
        rows = self._select_first(rows, as_of)
        candles = [candle for _, candle in rows]
        if not self._dry_run:
            result = await self._db.store(
                *key, candles, as_of=as_of, errors="skip", allow_outliers=self._allow_outliers
            )
        else:
            result = await self._compare(candles, as_of)
        report, lines = self.report, [line for line, _ in rows]
        report.new += result.new
        report.same += result.same
        report.rounded += len(result.rounded)
        report.widened += len(result.widened)
        report.skipped += [
            SkippedRow(lines[at], _in_lines(problem, report.noun, lines)) for at, problem in result.invalid
        ]
        times = [in_ms(candle["timestamp"]) for candle in candles]
        outliers = [] if self._allow_outliers else result.outliers
        unclosed, left_out = set(result.open), {*result.open, *outliers}
        invalid = {place for place, _ in result.invalid}
        closed = [at for place, at in enumerate(times) if at not in left_out and place not in invalid]
        if closed:
            report.first = min(closed if report.first is None else (report.first, *closed))
            report.last = max(closed if report.last is None else (report.last, *closed))
        line_of = dict(zip(times, lines, strict=True)) if result.different or left_out else {}
        report.skipped += [SkippedRow(line_of[at], _OUTLIER) for at in outliers]
        report.different += [RowOfFile(line_of[at], at) for at in result.different]
        if self._modified is None:
            report.open += [RowOfFile(line_of[at], at) for at in result.open]
        return [row for row, at in zip(rows, times, strict=True) if at in unclosed]

    def _select_first(self, rows: list[tuple[int, Candle]], as_of: int | None) -> list[tuple[int, Candle]]:
        """Return the rows without those of a time that an earlier row of the file has, which are reported.

        What `store` reports as open or invalid is left to it.
        """
        now = int(time.time() * 1000)
        latest = (now if as_of is None else min(now, as_of)) - self._series.step
        selected: list[tuple[int, Candle]] = []
        for line, candle in rows:
            at = in_ms(candle["timestamp"])
            first = line
            if at <= latest and not at % self._series.step:
                with suppress(ImpossibleCandleError):
                    numbers = candle_numbers(at, [candle[name] for name in NUMBERS], rounded=[], widened=[])
                    first = self._first_rows.add(line, numbers)
            if first == line:
                selected.append((line, candle))
            elif first:
                reason = f"it differs from {self.report.noun} {first:,}, which has the same time and comes first"
                self.report.skipped.append(SkippedRow(line, reason))
            else:
                self.repeated += 1
                self.report.same += 1
        return selected

    async def _compare(self, candles: list[Candle], as_of: int | None) -> CandleReport:
        """Report what `store` would do with candles, and store none."""
        now = int(time.time() * 1000)
        checked = check_candles(
            self._series,
            candles,
            as_of=now if as_of is None else min(now, as_of),
            early=self._db.allows_early_times,
            allow_outliers=self._allow_outliers,
        )
        key = (self._series.symbol, self._series.interval, self._series.exchange_name)
        outliers = list(checked.outliers.values())
        for candle, outcome in zip(outliers, await self._db.restore_series(*key, outliers, dry_run=True), strict=True):
            if outcome is Restored.SAME:
                checked.valid[candle["timestamp"]] = checked.outliers.pop(candle["timestamp"])
        result = CandleReport.of(checked)
        valid = list(checked.valid.values())
        for candle, outcome in zip(valid, await self._db.restore_series(*key, valid, dry_run=True), strict=True):
            if outcome is Restored.NEW:
                result.new += 1
            elif outcome is Restored.SAME:
                result.same += 1
            else:
                result.different.append(candle["timestamp"])
        return result


class _FirstRows:
    """Remembers the first row of each time, in 12 bytes."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._blocks: dict[int, tuple[array[int], array[int]]] = {}

    def add(self, line: int, candle: CandleData) -> int:
        """Remember the candle of a line; returns the line of an earlier one of its time that differs, or 0 if equal.

        It is the given line if there was none.
        """
        block, place = divmod(candle["timestamp"] // self._step, _BLOCK)
        numbers = hash(tuple(candle.values()))
        known = self._blocks.get(block)
        if known is None:
            known = self._blocks[block] = array("q", bytes(8 * _BLOCK)), array("L", bytes(array("L").itemsize * _BLOCK))
        hashes, lines = known
        if not lines[place]:
            hashes[place], lines[place] = numbers, line
            return line
        return 0 if hashes[place] == numbers else lines[place]


def _in_lines(problem: str, noun: str, lines: Sequence[int]) -> str:
    """Return the problem of a candle, in which another one is named by its line."""
    text = problem.partition(" (a dict with ")[0]
    return _CANDLE.sub(lambda found: f"{noun} {lines[int(found[1])]:,}", text)
