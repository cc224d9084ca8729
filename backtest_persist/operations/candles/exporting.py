"""`export_candles`: a series written to a file, and every candle that is not written named with the reason."""

import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, cast
from uuid import uuid4

from anyio.to_thread import run_sync

from backtest_persist.backends.json.atomic import sync_directory, sync_file
from backtest_persist.contracts import Bound, CandleData
from backtest_persist.core.candles.ohlcv import NUMBERS, ImpossibleCandleError, Series, candle_numbers, opening_time
from backtest_persist.core.instants import INT64_MAX, MIN_MICROSECONDS, admitted, checked_bound
from backtest_persist.core.persist_instance import Services
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import InvalidPayloadError, SettingsError
from backtest_persist.operations.candles.gaps import nothing_stored, stored_bounds
from backtest_persist.operations.candles.writers import CandleFormat, find_format, open_writer
from backtest_persist.operations.progress import NoProgress, Progress

__all__ = ("CandlesExported", "SkippedCandle", "export_candles")

PART = 10_000
"""Candles that are read and written at a time."""


class SkippedCandle(NamedTuple):
    """A stored candle that was not written."""

    timestamp: int
    """Its opening time in ms UTC."""
    reason: str


@dataclass
class CandlesExported:
    """The report of an export of candles; times are opening times in ms UTC."""

    file: str
    format: str
    rows: int = 0
    """How many candles were written."""
    first: int | None = None
    last: int | None = None
    bytes: int = 0
    """The size of the file."""
    skipped: list[SkippedCandle] = field(default_factory=list[SkippedCandle])
    """Those that an import would refuse, such as one that another program has stored at a time of no candle."""
    seconds: float = 0.0


async def export_candles(
    ioc: Services,
    file: str | os.PathLike[str],
    symbol: str,
    interval: str,
    exchange_name: str,
    since: Bound | None = None,
    until: Bound | None = None,
    *,
    format: Literal["csv", "parquet", "feather"] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CandlesExported:
    """Write the candles of a series that open in [since, until), without bounds all of them, to a file.

    For the bounds see `CandleDbService.find_frame`.

    The format is that of the name of the file unless `format` is given; a name that ends in ``.csv.gz`` is CSV,
    compressed. CSV has the columns timestamp (in ms UTC), open, high, low, close, volume; Parquet and feather have
    freqtrade's, which are the same but for `date`, in UTC. Parquet and feather need pyarrow or polars. What is exported
    and imported again is the same.

    The file is written under another name and renamed when it is complete. An existing one is a `SettingsError`, unless
    it is replaced by `force`. No candles in the range is an `InvalidKeyError`.
    """
    started = time.perf_counter()
    series, path = Series(symbol, interval, exchange_name), Path(file)
    file_format = find_format(path) if format is None else _checked_format(format)
    await run_sync(_check_target, path, force)
    db = ioc.db_service(CandleDbService)
    start, end = await _bounds(db, series, since, until)
    progress = progress or NoProgress()
    progress.begin(_count(series, start, end))
    report = CandlesExported(str(path), file_format.value)
    target = await run_sync(_Target, path, file_format)
    try:
        async with aclosing(_parts(db, series, start, end, progress)) as parts:
            async for candles, damaged in parts:
                report.skipped += damaged
                await run_sync(target.write, _select(series, candles, report))
        report.skipped.sort()
        if not report.rows and not report.skipped:
            raise nothing_stored(series, " in this range")
        report.bytes = await run_sync(target.finish, force)
    finally:
        target.close()  # not in a thread, which a cancelled caller may not wait for
    report.seconds = time.perf_counter() - started
    return report


class _Target:
    """The file that is written, under another name until it is complete."""

    def __init__(self, path: Path, file_format: CandleFormat) -> None:
        self._path = path
        self._target = Path(os.path.realpath(path))  # a link is kept
        self._temporary = self._target.with_name(f".{self._target.name[:40]}.{uuid4().hex}.tmp")
        with _file_errors(path):
            self._writer = open_writer(self._temporary, file_format, packed=path.suffix.lower() == ".gz")

    def write(self, candles: Sequence[CandleData]) -> None:
        with _file_errors(self._path):
            self._writer.write(candles)

    def finish(self, force: bool) -> int:
        """Give the complete file its name; returns its size."""
        with _file_errors(self._path):
            self._writer.finish()
            sync_file(self._temporary)
            size = self._temporary.stat().st_size
            _check_target(self._path, force)
            self._temporary.rename(self._target)
            sync_directory(self._target.parent)
            return size

    def close(self) -> None:
        """Remove what is not complete."""
        with suppress(OSError):
            self._writer.close()
            self._temporary.unlink(missing_ok=True)


@contextmanager
def _file_errors(path: Path) -> Generator[None]:
    """Raise the errors of the operating system as those of this package."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror or error}.") from None


def _check_target(path: Path, force: bool) -> None:
    with _file_errors(path):
        if path.is_dir():
            raise SettingsError(f"{path} is a directory; name a file in it.")
        parent = Path(os.path.realpath(path)).parent
        if not parent.is_dir():
            raise SettingsError(f"There is no directory {parent if path.is_symlink() else path.parent}; make it first.")
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path} is no regular file; name another one.")
        if path.exists() and not force:
            raise SettingsError(f"{path} exists; name another file, or replace it by force.")


def _checked_format(given: str) -> CandleFormat:
    try:
        return CandleFormat(given)
    except ValueError:
        raise SettingsError(f"format must be csv, parquet or feather, not {given!r:.40}.") from None


async def _bounds(db: CandleDbService, series: Series, since: Bound | None, until: Bound | None) -> tuple[int, int]:
    """Return the range of what is stored in [since, until), in ms UTC."""
    start = None if since is None else checked_bound(since, "since", db.allows_early_times)
    end = None if until is None else checked_bound(until, "until", db.allows_early_times)
    first, last = await stored_bounds(db, series)
    start = first if start is None else max(start, first)
    after = min(last + 1, INT64_MAX)
    end = after if end is None else min(end, after)
    if start >= end:
        raise nothing_stored(series, " in this range")
    return start, end


async def _parts(
    db: CandleDbService, series: Series, start: int, end: int, progress: Progress
) -> AsyncGenerator[tuple[list[CandleData], list[SkippedCandle]]]:
    """Iterate over what is stored in [start, end), with what is damaged there.

    A part is the time of 10,000 candles; what lies at no time in ms, before and after all others, is one part each.
    """
    while start < end:
        bound = (
            -MIN_MICROSECONDS + 1
            if start <= -MIN_MICROSECONDS
            else end
            if start >= MIN_MICROSECONDS
            else min(start + PART * series.step, MIN_MICROSECONDS)
        )
        stop, damaged = min(end, bound), list[SkippedCandle]()
        candles = await _read(db, series, start, stop, damaged)
        yield candles, damaged
        if not candles and not damaged and stop < end:
            following = await db.candles.find_bounds(series, stop)
            stop = end if following is None else min(end, following[0])
        progress.advance(_count(series, start, stop))
        start = stop


def _count(series: Series, start: int, end: int) -> int:
    """Return how many candles can open in a range."""
    return max(0, -(-(min(end, MIN_MICROSECONDS) - max(start, -MIN_MICROSECONDS)) // series.step))


async def _read(
    db: CandleDbService, series: Series, start: int, end: int, damaged: list[SkippedCandle]
) -> list[CandleData]:
    """Read what is stored in [start, end), and divide that until what is damaged is alone."""
    try:
        return await db.candles.find_data(series, start, end)
    except InvalidPayloadError as error:
        if end - start == 1:
            damaged.append(SkippedCandle(start, str(error)))
            return []
        middle = (start + end) // 2
        return [
            *await _read(db, series, start, middle, damaged),
            *await _read(db, series, middle, end, damaged),
        ]


def _select(series: Series, candles: Sequence[CandleData], report: CandlesExported) -> list[CandleData]:
    """Return the candles that an import takes, and add to the report."""
    selected: list[CandleData] = []
    for candle in candles:
        try:
            at = opening_time(candle["timestamp"], series.interval, admitted)
            candle_numbers(at, [cast("dict[str, float]", candle)[name] for name in NUMBERS], rounded=[], widened=[])
            selected.append(candle)
        except ImpossibleCandleError as problem:
            report.skipped.append(SkippedCandle(candle["timestamp"], str(problem)))
    if selected:
        report.rows += len(selected)
        report.first = selected[0]["timestamp"] if report.first is None else report.first
        report.last = selected[-1]["timestamp"]
    return selected
