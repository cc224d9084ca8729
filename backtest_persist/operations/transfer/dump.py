"""Import and export: between a dump and MongoDB, in either direction, with nothing lost in silence."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from anyio.to_thread import run_sync

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.layout import LAYOUTS, Layout
from backtest_persist.backends.json.value_file import SUFFIX, Stored, ValueFile, Write, members, natural
from backtest_persist.container import Container
from backtest_persist.contracts import CandleData
from backtest_persist.core.db_service import DbService
from backtest_persist.core.keys import STORED, checked_name
from backtest_persist.core.mongo_store import Restored
from backtest_persist.core.ohlcv import checked_candle, closed_candles
from backtest_persist.core.payload import encode_list, encode_payload
from backtest_persist.core.row import Context, Row, wire_when
from backtest_persist.domains.candle import CandleRow
from backtest_persist.errors import BacktestPersistError, InvalidKeyError, InvalidPayloadError, SettingsError
from backtest_persist.operations.transfer.scan import Found, Scan, Skipped, scan

__all__ = ("Count", "Exported", "Imported", "Progress", "export_dump", "import_dump")

CANDLES_AT_ONCE = 5000
FILES_AT_ONCE = 500

_TICK_NS = 1000
_HINTS = {"strategy_name": "strategyName", "exchange_name": "exchangeName", "frame_name": "frameName"}

F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class _Loaded(Found):
    """A file with its value, and the context it was taken for as the only one."""

    stored: Stored


class _Series(NamedTuple):
    symbol: str
    interval: str
    exchange_name: str


class Progress(Protocol):
    """Is told how far a transfer is."""

    def begin(self, total: int) -> None:
        """The number of values to come."""
        ...

    def advance(self, done: int) -> None:
        """So many more are done."""
        ...


@dataclass
class Count:
    """What became of the files of one domain."""

    files: int = 0
    new: int = 0
    """Stored, or to be stored in a dry run."""
    same: int = 0
    """Stored already."""
    skipped: int = 0


@dataclass
class Imported:
    """The report of an import."""

    domains: dict[str, Count] = field(default_factory=lambda: {domain: Count() for domain in LAYOUTS})
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Every file that was not imported, and why."""
    assumed: dict[str, str] = field(default_factory=dict[str, str])
    """Directories whose names can be read in several ways, and how they were read."""
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """Directories that hold no persisted data, and how many files lie there."""
    seconds: float = 0.0


@dataclass
class Exported:
    """The report of an export."""

    domains: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAYOUTS, 0))
    """How many files were written."""
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Every document that was not exported (as collection and id), and why."""
    seconds: float = 0.0


async def import_dump(
    container: Container,
    directory: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    exchanges: Iterable[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Store the values of a dump, ours or the original's, in MongoDB, where none stands yet.

    What stands in MongoDB is never touched, so an import can be repeated, or resumed after it was interrupted. A file
    that cannot be imported is reported with the reason and stops nothing. With `dry_run` nothing is written.
    `exchanges` are names of exchanges that hold ``_``, for directories that join them to others.
    `SettingsError` when there is no dump.
    """
    started = time.perf_counter()
    root = Path(directory)
    found = await run_sync(_scan, root)
    sure = [context for name in ("candle", "session") for context in _sure(found.found[name])]
    known = {name: {context[name] for context in sure} for name in ("exchange_name", "symbol")}
    known["exchange_name"].update(exchanges)
    report = Imported(ignored=found.ignored)
    work = _Import(container, root, report, dry_run, known, progress)
    for domain, files in found.skipped.items():
        for skipped in files:
            work.skip(domain, skipped)
    if progress is not None:
        progress.begin(sum(map(len, found.found.values())))
    for domain, files in found.found.items():
        report.domains[domain].files = len(files) + len(found.skipped[domain])
        await (work.candles(files) if domain == "candle" else work.values(domain, files))
    report.seconds = time.perf_counter() - started
    return report


@dataclass
class _Import:
    container: Container
    root: Path
    report: Imported
    dry_run: bool
    known: Mapping[str, set[str]]
    """Names of exchanges and symbols that are sure, by field."""
    progress: Progress | None

    def skip(self, domain: str, skipped: Skipped) -> None:
        self.report.domains[domain].skipped += 1
        self.report.skipped.append(skipped)

    def done(self, domain: str, outcomes: Sequence[Restored], files: Sequence[tuple[Path, str]]) -> None:
        count = self.report.domains[domain]
        for outcome, (path, stem) in zip(outcomes, files, strict=True):
            if outcome is Restored.DIFFERENT:
                self.skip(domain, self.skipped(path, stem, "another value is stored already, and was kept"))
            elif outcome is Restored.NEW:
                count.new += 1
            else:
                count.same += 1

    def skipped(self, path: Path, stem: str, reason: str) -> Skipped:
        return Skipped(str((path / f"{stem}{SUFFIX}").relative_to(self.root)), reason)

    def advance(self, done: int) -> None:
        if self.progress is not None:
            self.progress.advance(done)

    async def newest(self, domain: str, rivals: Iterable[Iterable[F]]) -> list[F]:
        """Of the files that hold the same context the newest; the others are skipped."""
        newest, older = await run_sync(_newest, rivals)
        for file, newer in older:
            taken = (newer.path / f"{newer.stem}{SUFFIX}").relative_to(self.root)
            self.skip(domain, self.skipped(file.path, file.stem, f"{taken} holds the same context, and was taken"))
        self.advance(len(older))
        return newest

    # --- candles ---

    async def candles(self, files: Sequence[Found]) -> None:
        series: dict[_Series, list[Found]] = defaultdict(list)
        for file in files:
            series[_Series(*(file.contexts[0][name] for name in _Series._fields))].append(file)
        chunks: list[tuple[_Series, list[Found]]] = []
        for key, group in series.items():
            group.sort(key=_timestamp)
            unique = await self.newest("candle", (twins for _, twins in groupby(group, key=_timestamp)))
            chunks += [(key, unique[at : at + CANDLES_AT_ONCE]) for at in range(0, len(unique), CANDLES_AT_ONCE)]
        reading = None
        try:
            for at, (key, chunk) in enumerate(chunks):
                candles, paths = await (reading or self._read_candles(key, chunk))
                following = chunks[at + 1 : at + 2]
                reading = asyncio.create_task(self._read_candles(*following[0])) if following else None
                if candles:
                    outcomes = await self.container.candle_db_service.restore_series(
                        key.symbol, key.interval, key.exchange_name, candles, dry_run=self.dry_run
                    )
                    self.done("candle", outcomes, paths)
                self.advance(len(chunk))
        finally:
            if reading is not None:
                reading.cancel()

    async def _read_candles(
        self, series: _Series, files: Sequence[Found]
    ) -> tuple[list[CandleData], list[tuple[Path, str]]]:
        found = await run_sync(_candles, series, files)
        candles: list[CandleData] = []
        paths: list[tuple[Path, str]] = []
        for file, candle in zip(files, found, strict=True):
            if isinstance(candle, str):
                self.skip("candle", self.skipped(file.path, file.stem, candle))
            else:
                candles.append(candle)
                paths.append((file.path, file.stem))
        return candles, paths

    # --- everything else ---

    async def values(self, domain: str, files: Sequence[Found]) -> None:
        service = _services(self.container)[domain]
        rivals: dict[frozenset[tuple[str, Any]], list[_Loaded]] = defaultdict(list)
        for at in range(0, len(files), FILES_AT_ONCE):
            chunk = files[at : at + FILES_AT_ONCE]
            for file, stored in zip(chunk, await run_sync(_load_all, self.root, chunk), strict=True):
                if isinstance(stored, str):
                    self.skip(domain, self.skipped(file.path, file.stem, stored))
                    self.advance(1)
                else:
                    context = self._context(file, stored)
                    loaded = _Loaded(domain, (context,), file.path, file.stem, stored)
                    rivals[frozenset(context.items())].append(loaded)
        unique = await self.newest(domain, rivals.values())
        unique.sort(key=lambda file: (file.stored.created, natural(file.stem)))
        for at in range(0, len(unique), FILES_AT_ONCE):
            contents: list[tuple[Context, dict[str, Any]]] = []
            paths: list[tuple[Path, str]] = []
            for file in unique[at : at + FILES_AT_ONCE]:
                try:
                    contents.append(_content(service, domain, file.contexts[0], file.stored))
                    paths.append((file.path, file.stem))
                except BacktestPersistError as error:
                    self.skip(domain, self.skipped(file.path, file.stem, str(error)))
            outcomes = await service.mongo_store.restore(contents, dry_run=self.dry_run)
            self.done(domain, outcomes, paths)
            self.advance(len(unique[at : at + FILES_AT_ONCE]))

    def _context(self, file: Found, stored: Stored) -> dict[str, Any]:
        """The context of a file: the only one, or the one that its payload, known names or the rule speak for."""
        contexts = list(file.contexts)
        payload = members(stored.value)
        hints = {name: {payload[wire]} for name, wire in _HINTS.items() if isinstance(payload.get(wire), str)}
        for names in (hints, self.known):
            for name, values in names.items():
                contexts = [context for context in contexts if context.get(name) in values] or contexts
        if len(contexts) > 1:
            read = ", ".join(f"{name}={value!r}" for name, value in contexts[0].items())
            self.report.assumed[str(file.path.relative_to(self.root))] = read
        return contexts[0]


async def export_dump(
    container: Container, directory: str | os.PathLike[str], *, progress: Progress | None = None
) -> Exported:
    """Write everything that MongoDB holds as a dump, into a directory that is empty or does not exist yet.

    An import of it gives the same documents, their dates and ids aside. `SettingsError` when the directory is in use.
    """
    started = time.perf_counter()
    root = Path(directory)
    await run_sync(_check_empty, root)
    work = _Export(DumpFiles(root), Exported(), progress)
    services = _services(container)
    if progress is not None:
        progress.begin(sum([await service.count() for service in services.values()]))
    for domain, service in services.items():
        series = [(name, 1) for name in service.context_type.wire_names()] if domain == "candle" else None
        async with aclosing(service.mongo_store.sift(sort=series)) as batches:  # by the index, however many there are
            async for rows, refused in batches:
                await work.rows(domain, service, rows)
                work.skip(service, refused)
                work.advance(len(rows) + len(refused))
    await run_sync(os.sync)
    work.report.seconds = time.perf_counter() - started
    return work.report


@dataclass
class _Export:
    dump: DumpFiles
    report: Exported
    progress: Progress | None
    created: int = 0

    async def rows(self, domain: str, service: DbService[Any, Any], rows: Sequence[Row]) -> None:
        layout = LAYOUTS[domain]
        folders: dict[tuple[Any, ...], tuple[dict[str, Any], list[Write]]] = {}
        for row in rows:
            context = {name: getattr(row, name) for name in service.context_type.model_fields}
            created = round(row.create_date.timestamp() * 1000) * 1_000_000
            self.created = max(created, self.created + _TICK_NS)  # rows of one bulk share a ms, and keep their order
            try:
                when = getattr(row, "when", None) if layout.timed else None
                write = Write(layout.name(context), _text(row, f"{domain} {row.id}"), when, self.created)
                _check_id(layout, context, getattr(row, "payload", None))
            except BacktestPersistError as error:
                self.skip(service, [(row.id, error)])
                continue
            key = tuple(context[name] for fields in layout.directories for name in fields)
            folders.setdefault(key, (context, []))[1].append(write)
        for context, writes in folders.values():
            self.report.domains[domain] += await self.dump.folder(domain, **context).write(writes, flush=False)

    def skip(self, service: DbService[Any, Any], refused: Iterable[tuple[str, BacktestPersistError]]) -> None:
        self.report.skipped += [Skipped(f"{service.collection} {row_id}", str(error)) for row_id, error in refused]

    def advance(self, done: int) -> None:
        if self.progress is not None:
            self.progress.advance(done)


def _services(container: Container) -> dict[str, DbService[Any, Any]]:
    return {service.collection.removesuffix("-items"): service for service in container.db_services}


def _scan(root: Path) -> Scan:
    try:
        if not root.is_dir():
            raise SettingsError(f"There is no directory {root}.")
        found = scan(root)
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be read: {error.strerror}.") from None
    if not any(found.found.values()) and not any(found.skipped.values()):
        below = root / "dump"
        hint = f"; try {below}" if below.is_dir() else ""
        raise SettingsError(f"{root} holds no dump: nothing in data/, memory/, state/ and session/{hint}.")
    return found


def _check_empty(root: Path) -> None:
    try:
        usable = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{root} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if not usable:
        raise SettingsError(f"{root} is not an empty directory; name one that is, or that does not exist.")


def _sure(files: Iterable[Found]) -> Iterable[dict[str, Any]]:
    return (file.contexts[0] for file in files if len(file.contexts) == 1)


def _timestamp(candle: Found) -> int:
    return candle.contexts[0]["timestamp"]


def _newest(rivals: Iterable[Iterable[F]]) -> tuple[list[F], list[tuple[F, F]]]:
    """The newest file of each group, and each of the others with the one that is newer."""
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
    try:
        return (file.path / f"{file.stem}{SUFFIX}").stat().st_mtime_ns
    except OSError:  # it is gone
        return 0


def _candles(series: _Series, files: Sequence[Found]) -> list[CandleData | str]:
    """The candles of these files, or why there is none."""
    try:
        for name, value in series._asdict().items():
            checked_name(value, name)
    except InvalidKeyError as error:
        return [str(error)] * len(files)
    found: list[CandleData | str] = []
    now = int(time.time() * 1000)
    for file in files:
        try:
            value = codec.loads((file.path / f"{file.stem}{SUFFIX}").read_bytes())
            candle = checked_candle(series.symbol, series.interval, series.exchange_name, value)
            if candle["timestamp"] != file.contexts[0]["timestamp"]:
                found.append("it holds the candle of another time")
            elif not closed_candles(series.interval, [candle], now):
                found.append("the candle has not closed yet")
            else:
                found.append(candle)
        except (BacktestPersistError, OSError, ValueError) as error:
            found.append(f"{error}")
    return found


def _load_all(root: Path, files: Sequence[Found]) -> list[Stored | str]:
    """The values of these files, or why there is none."""
    found: list[Stored | str] = []
    for file in files:
        try:
            stored = ValueFile(root, LAYOUTS[file.domain], file.path, file.stem).load()
            found.append("it is gone" if stored is None else stored)
        except (BacktestPersistError, OSError) as error:
            found.append(f"{error}")
    return found


def _content(
    service: DbService[Any, Any], domain: str, context: Mapping[str, Any], stored: Stored
) -> tuple[Context, dict[str, Any]]:
    """A file as a document: its context, and the fields beside it."""
    layout, value = LAYOUTS[domain], stored.value
    fields: dict[str, Any] = {"when": wire_when(stored.when)} if layout.timed else {}
    if domain == "risk":
        fields["positions"] = encode_list([] if value is None else value, domain)
    else:
        payload = fields["payload"] = encode_payload(value, domain)
        if "removed" in service.row_type.model_fields:
            fields["removed"] = stored.removed
        else:
            _check_id(layout, context, payload)
    return service.context_type.model_validate(context, context=STORED), fields


def _check_id(layout: Layout, context: Mapping[str, Any], payload: Any) -> None:
    """Refuse an entry of a list, which is found by the 'id' that it holds, under another name."""
    if layout.ordered and not layout.removable and members(payload).get("id") != context[layout.file[0]]:
        raise InvalidPayloadError("Its name is not the 'id' of what it holds.")


def _text(row: Row, what: str) -> bytes:
    """A document as the text of a file."""
    if isinstance(row, CandleRow):
        return codec.dumps(checked_candle(row.symbol, row.interval, row.exchange_name, row.data()))
    if getattr(row, "frame_name", None) == "" and getattr(row, "backtest", False):
        raise InvalidKeyError(f"{what}: frame_name must not be empty in a backtest.")
    value = getattr(row, "positions", None)
    if value is not None:
        return codec.dumps(codec.encode(encode_list(value, what)))
    payload = encode_payload(getattr(row, "payload", None), what)
    marked = payload is not None and payload.get("removed") is True
    removed = getattr(row, "removed", marked)
    if removed != marked:
        return codec.dumps({codec.LITERAL: codec.encode(payload), "removed": removed})
    return codec.dumps(codec.encode(payload))
