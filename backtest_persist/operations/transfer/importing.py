"""`import_dump`: the values of a dump stored in MongoDB, and every file that is not stored named with the reason."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from anyio.to_thread import run_sync

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import cause_of
from backtest_persist.backends.json.journal import Journal
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.value_file import SUFFIX, Stored, ValueFile, members, natural
from backtest_persist.container import Container
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.input import checked_candle
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.instants import admitted
from backtest_persist.core.mongo_store import Restored
from backtest_persist.core.row import Context
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import BacktestPersistError, InvalidKeyError, SettingsError
from backtest_persist.operations.domains import DomainServices, domain_services
from backtest_persist.operations.progress import NoProgress, Progress
from backtest_persist.operations.transfer.conversion import to_document
from backtest_persist.operations.transfer.months import Candidate, SharedMonth, select_candidates, split_shared
from backtest_persist.operations.transfer.report import FileCounts, Imported, Skipped
from backtest_persist.operations.transfer.scan import Found, Scan, scan
from backtest_persist.operations.transfer.series_files import Lines, SeriesFile, read_lines

__all__ = ("import_dump", "scan_dump")

CANDLES_AT_ONCE = 5000
FILES_AT_ONCE = 500

_HINTS = {"strategy_name": "strategyName", "exchange_name": "exchangeName", "frame_name": "frameName"}
"""The members of a payload that tell a field of the context."""

F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class _Loaded(Found):
    """A file with its value; `contexts` holds the one context that was chosen."""

    stored: Stored


class _Series(NamedTuple):
    symbol: str
    interval: str
    exchange_name: str


async def import_dump(
    container: Container,
    directory: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    exchanges: Iterable[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Store the values of a dump, of this package or of the TypeScript framework, whose contexts MongoDB lacks.

    Stored documents are never changed, so an import can be repeated, or resumed after an interruption. A file that
    cannot be imported is reported with the reason and does not stop the import. With `dry_run` nothing is written.
    `exchanges` are names of exchanges that contain ``_``, for directories whose names join several fields.
    `SettingsError` when the directory holds no dump.
    """
    started = time.perf_counter()
    root = Path(directory)
    domains = {domain.name: domain for domain in domain_services(container)}
    dump = await run_sync(scan_dump, root, {name: domain.layout for name, domain in domains.items()})
    report = Imported({name: FileCounts() for name in domains}, ignored=dump.ignored)
    importer = _Importer(container, root, report, dry_run, _known_names(dump, exchanges), progress or NoProgress())
    for name, files in dump.skipped.items():
        for skipped in files:
            importer.skip(name, skipped)
    importer.progress.begin(sum(map(len, dump.found.values())) + len(dump.series))
    for name, files in dump.found.items():
        report.domains[name].files = len(files) + len(dump.skipped[name])
        if isinstance(domains[name].db, CandleDbService):
            report.domains[name].files += len(dump.series)
            singles, series, shared = split_shared(files, dump.series)
            await importer.import_candles(name, singles)
            await importer.import_series(name, series)
            for month in shared:
                await importer.import_month(name, month)
            report.ignored_fields = sorted(importer.ignored_fields)
        else:
            await importer.import_values(domains[name], files)
    report.seconds = time.perf_counter() - started
    return report


def scan_dump(root: Path, layouts: Mapping[str, Layout]) -> Scan:
    """Find the values of a dump; `SettingsError` when the directory holds none, or cannot be read.

    A unit of work that a process has left in it, as it was killed, is applied first.
    """
    try:
        if not root.is_dir():
            raise SettingsError(f"There is no directory {root}.")
        try:
            Journal(root).settle()
        except OSError as error:
            raise SettingsError(f"{root} cannot be read: {cause_of(error)}.") from None
        dump = scan(root, layouts)
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be read: {error.strerror}.") from None
    if not dump.series and not any(dump.found.values()) and not any(dump.skipped.values()):
        below = root / "dump"
        hint = f"; try {below}" if below.is_dir() else ""
        raise SettingsError(f"{root} holds no dump: nothing in data/, memory/, state/ and session/{hint}.")
    return dump


@dataclass
class _Importer:
    container: Container
    root: Path
    report: Imported
    dry_run: bool
    known_names: Mapping[str, set[str]]
    """Names of exchanges and symbols that are certain, by field."""
    progress: Progress
    ignored_fields: set[str] = field(default_factory=set[str])

    # --- candles ---

    async def import_candles(self, domain: str, files: Sequence[Found]) -> None:
        series: dict[_Series, list[Found]] = defaultdict(list)
        for file in files:
            series[_Series(*(file.contexts[0][name] for name in _Series._fields))].append(file)
        chunks: list[tuple[_Series, list[Found]]] = []
        for key, group in series.items():
            group.sort(key=_timestamp)
            unique = await self.select_newest(domain, (rivals for _, rivals in groupby(group, key=_timestamp)))
            chunks += [(key, unique[at : at + CANDLES_AT_ONCE]) for at in range(0, len(unique), CANDLES_AT_ONCE)]
        reading = None
        try:
            for at, (key, chunk) in enumerate(chunks):
                candles, paths = await (reading or self._read_candles(domain, key, chunk))
                following = chunks[at + 1 : at + 2]
                reading = asyncio.create_task(self._read_candles(domain, *following[0])) if following else None
                if candles:
                    outcomes = await self.container.candle_db_service.restore_series(
                        key.symbol, key.interval, key.exchange_name, candles, dry_run=self.dry_run
                    )
                    self.add_outcomes(domain, outcomes, paths)
                self.progress.advance(len(chunk))
        finally:
            if reading is not None:
                reading.cancel()

    async def _read_candles(
        self, domain: str, series: _Series, files: Sequence[Found]
    ) -> tuple[list[CandleData], list[tuple[Path, str]]]:
        results = await run_sync(_read_candles, series, files, self.ignored_fields)
        candles: list[CandleData] = []
        paths: list[tuple[Path, str]] = []
        for file, result in zip(files, results, strict=True):
            if isinstance(result, str):
                self.skip(domain, self.skipped(file.path, file.stem, result))
            else:
                candles.append(result)
                paths.append((file.path, file.stem))
        return candles, paths

    async def import_series(self, domain: str, files: Sequence[SeriesFile]) -> None:
        parts = read_lines(files)
        reading = asyncio.create_task(run_sync(next, parts, None))
        try:
            while (lines := await reading) is not None:
                reading = asyncio.create_task(run_sync(next, parts, None))
                file = lines.file
                path = file.path.relative_to(self.root)
                self._add_lines(domain, lines)
                if lines.candles:
                    outcomes = await self.container.candle_db_service.restore_series(
                        file.symbol,
                        file.interval,
                        file.exchange_name,
                        [candle for _, candle in lines.candles.values()],
                        dry_run=self.dry_run,
                    )
                    numbers = [number for number, _ in lines.candles.values()]
                    self.count(domain, outcomes, partial(_line, path, numbers))
                self.progress.advance(lines.is_last)
        finally:
            reading.cancel()

    def _add_lines(self, domain: str, lines: Lines) -> None:
        """Add to the report what is not stored of lines."""
        path = lines.file.path.relative_to(self.root)
        for number, problem in lines.problems:
            self.skip(domain, Skipped(f"{path}" if number is None else f"{path}:{number}", problem))
        self.report.domains[domain].same += lines.repeated
        self.ignored_fields |= lines.ignored

    async def import_month(self, domain: str, month: SharedMonth) -> None:
        """Import a month that is there in several forms: of each candle the one whose file was changed last."""
        file = month.series[0]
        key = _Series(file.symbol, file.interval, file.exchange_name)
        candles, paths = await self._read_candles(domain, key, month.singles)
        ages = await run_sync(list, map(_modified, month.singles))
        modified = {(single.path, single.stem): age for single, age in zip(month.singles, ages, strict=True)}
        candidates = [
            Candidate(self.name(*path), modified[path], candle) for candle, path in zip(candles, paths, strict=True)
        ]
        for file in month.series:
            age = await run_sync(_age, file.path)
            for lines in await run_sync(list, read_lines([file])):
                self._add_lines(domain, lines)
                name = partial("{}:{}".format, file.path.relative_to(self.root))
                candidates += [Candidate(name(number), age, candle) for number, candle in lines.candles.values()]
        selected, differing, equal = select_candidates(candidates)
        for candidate, taken in differing:
            why = "is newer" if taken.modified > candidate.modified else "was taken"
            self.skip(domain, Skipped(candidate.name, f"{taken.name} holds another candle of this time and {why}"))
        self.report.domains[domain].same += equal
        for at in range(0, len(selected), CANDLES_AT_ONCE):
            chunk = selected[at : at + CANDLES_AT_ONCE]
            outcomes = await self.container.candle_db_service.restore_series(
                *key, [each.candle for each in chunk], dry_run=self.dry_run
            )
            self.count(domain, outcomes, [each.name for each in chunk].__getitem__)
        self.progress.advance(len(month.singles) + len(month.series))

    # --- all other values ---

    async def import_values(self, domain: DomainServices, files: Sequence[Found]) -> None:
        rivals: dict[frozenset[tuple[str, Any]], list[_Loaded]] = defaultdict(list)
        for at in range(0, len(files), FILES_AT_ONCE):
            chunk = files[at : at + FILES_AT_ONCE]
            results = await run_sync(_load_all, self.root, domain.layout, chunk)
            for file, result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    self.skip(domain.name, self.skipped(file.path, file.stem, result))
                    self.progress.advance(1)
                else:
                    context = self._choose_context(file, result)
                    loaded = _Loaded(domain.name, (context,), file.path, file.stem, result)
                    rivals[frozenset(context.items())].append(loaded)
        unique = await self.select_newest(domain.name, rivals.values())
        unique.sort(key=lambda file: (file.stored.created, natural(file.stem)))
        for at in range(0, len(unique), FILES_AT_ONCE):
            chunk = unique[at : at + FILES_AT_ONCE]
            contents: list[tuple[Context, dict[str, Any]]] = []
            paths: list[tuple[Path, str]] = []
            for file in chunk:
                try:
                    contents.append(to_document(domain, file.contexts[0], file.stored))
                    paths.append((file.path, file.stem))
                except BacktestPersistError as error:
                    self.skip(domain.name, self.skipped(file.path, file.stem, str(error)))
            outcomes = await domain.db.mongo_store.restore(contents, dry_run=self.dry_run)
            self.add_outcomes(domain.name, outcomes, paths)
            self.progress.advance(len(chunk))

    def _choose_context(self, file: Found, stored: Stored) -> dict[str, Any]:
        """Choose among the possible contexts of a file by its payload, then by known names, then by probability."""
        contexts = list(file.contexts)
        payload = members(stored.value)
        hints = {name: {payload[wire]} for name, wire in _HINTS.items() if isinstance(payload.get(wire), str)}
        for names in (hints, self.known_names):
            for name, values in names.items():
                contexts = [context for context in contexts if context.get(name) in values] or contexts
        if len(contexts) > 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in contexts[0].items())
            self.report.assumed[str(file.path.relative_to(self.root))] = shown
        return contexts[0]

    # --- the report ---

    async def select_newest(self, domain: str, rivals: Iterable[Iterable[F]]) -> list[F]:
        """Return, of the files that hold the same context, the newest; the others are skipped."""
        newest, older = await run_sync(_select_newest, rivals)
        for file, newer in older:
            path = (newer.path / f"{newer.stem}{SUFFIX}").relative_to(self.root)
            reason = f"{path} holds the same context and is newer"
            self.skip(domain, self.skipped(file.path, file.stem, reason))
        self.progress.advance(len(older))
        return newest

    def add_outcomes(self, domain: str, outcomes: Sequence[Restored], files: Sequence[tuple[Path, str]]) -> None:
        self.count(domain, outcomes, lambda at: self.name(*files[at]))

    def count(self, domain: str, outcomes: Sequence[Restored], name: Callable[[int], str]) -> None:
        counts = self.report.domains[domain]
        for at, outcome in enumerate(outcomes):
            if outcome is Restored.DIFFERENT:
                self.skip(domain, Skipped(name(at), "another value is stored already, and was kept"))
            elif outcome is Restored.NEW:
                counts.new += 1
            else:
                counts.same += 1

    def skip(self, domain: str, skipped: Skipped) -> None:
        self.report.domains[domain].skipped += 1
        self.report.skipped.append(skipped)

    def skipped(self, path: Path, stem: str, reason: str) -> Skipped:
        return Skipped(self.name(path, stem), reason)

    def name(self, path: Path, stem: str) -> str:
        return str((path / f"{stem}{SUFFIX}").relative_to(self.root))


def _line(path: Path, numbers: Sequence[int], at: int) -> str:
    return f"{path}:{numbers[at]}"


def _known_names(dump: Scan, exchanges: Iterable[str]) -> dict[str, set[str]]:
    """Return the names of exchanges and symbols that no other reading contradicts, by field."""
    contexts = [
        file.contexts[0] for name in ("candle", "session") for file in dump.found[name] if len(file.contexts) == 1
    ]
    known = {field: {context[field] for context in contexts} for field in ("exchange_name", "symbol")}
    for file in dump.series:
        known["exchange_name"].add(file.exchange_name)
        known["symbol"].add(file.symbol)
    known["exchange_name"].update(exchanges)
    return known


def _timestamp(candle: Found) -> int:
    return candle.contexts[0]["timestamp"]


def _select_newest(rivals: Iterable[Iterable[F]]) -> tuple[list[F], list[tuple[F, F]]]:
    """Return the newest file of each group, and each of the others with the newest one of its group."""
    newest: list[F] = []
    older: list[tuple[F, F]] = []
    for group in rivals:
        first, *others = group
        if others:
            first, *others = sorted((first, *others), key=_modified, reverse=True)
        newest.append(first)
        older += [(other, first) for other in others]
    return newest, older


def _modified(file: Found) -> int:
    return _age(file.path / f"{file.stem}{SUFFIX}")


def _age(path: Path) -> int:
    """Return when a file was modified, in ns."""
    try:
        return path.stat().st_mtime_ns
    except OSError:  # it was removed
        return 0


def _read_candles(series: _Series, files: Sequence[Found], ignored: set[str]) -> list[CandleData | str]:
    """Return the candle of each file, or the reason why it cannot be imported; adds fields that are not stored."""
    try:
        checked = Series(series.symbol, series.interval, series.exchange_name)
    except InvalidKeyError as error:
        return [str(error)] * len(files)
    results: list[CandleData | str] = []
    now = int(time.time() * 1000)
    for file in files:
        try:
            value = codec.loads((file.path / f"{file.stem}{SUFFIX}").read_bytes())
            candle = checked_candle(checked, value, admitted, ignored)
            if candle["timestamp"] != file.contexts[0]["timestamp"]:
                results.append("it holds a candle of another time")
            elif candle["timestamp"] + checked.step > now:
                results.append("the candle has not closed yet")
            else:
                results.append(candle)
        except (BacktestPersistError, OSError, ValueError) as error:
            results.append(f"{error}")
    return results


def _load_all(root: Path, layout: Layout, files: Sequence[Found]) -> list[Stored | str]:
    """Return the value of each file, or the reason why it cannot be imported."""
    results: list[Stored | str] = []
    for file in files:
        try:
            stored = ValueFile(root, layout, file.path, file.stem).load()
            results.append("it was removed during the import" if stored is None else stored)
        except (BacktestPersistError, OSError) as error:
            results.append(f"{error}")
    return results
