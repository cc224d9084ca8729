"""`export_dump`: the documents of MongoDB written as a dump, and every document that is not written named."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyio.to_thread import run_sync

from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.value_file import Write
from backtest_persist.connections import Document
from backtest_persist.container import Container
from backtest_persist.core.domain import Family
from backtest_persist.core.row import Row
from backtest_persist.domains.candle import CANDLE
from backtest_persist.errors import BacktestPersistError, SettingsError
from backtest_persist.operations.domains import DomainServices, domain_services
from backtest_persist.operations.progress import NoProgress, Progress
from backtest_persist.operations.transfer.conversion import check_id, to_text
from backtest_persist.operations.transfer.report import Exported, Skipped
from backtest_persist.operations.transfer.series_files import SeriesWriter
from backtest_persist.operations.unknown import unknown_collections

__all__ = ("CANDLE_FILES", "export_dump")

CANDLE_FILES = 100_000
"""How many candles are exported as a file each, unless the caller decides."""
_TICK_NS = 1000


async def export_dump(
    container: Container,
    directory: str | os.PathLike[str],
    *,
    candles: Literal["auto", "files", "series"] = "auto",
    progress: Progress | None = None,
) -> Exported:
    """Write all documents of MongoDB as a dump, into a directory that is empty or does not exist yet.

    An import of it gives the same documents, except for their dates and ids. A document that no file can hold is
    reported with the reason, and so are collections that belong to no domain of the container.

    With ``candles="files"`` each candle is a file, as in the TypeScript framework, which reads no others, and neither
    does the JSON backend. With ``"series"`` each month of a series is one, which takes a small part of the time and the
    space. ``"auto"`` chooses files for up to 100,000 candles.

    `SettingsError` when the directory is not empty or cannot be used.
    """
    if candles not in ("auto", "files", "series"):
        raise SettingsError(f"candles must be 'auto', 'files' or 'series', not {candles!r:.40}.")
    started = time.perf_counter()
    progress = progress or NoProgress()
    root = Path(directory)
    await run_sync(_check_empty, root)
    domains = domain_services(container)
    counts = {domain.name: await domain.db.count() for domain in domains}
    report = Exported(dict.fromkeys(counts, 0), ignored=await unknown_collections(container))
    if candles == "series" or (candles == "auto" and counts.get(CANDLE.name, 0) > CANDLE_FILES):
        report.candles = "series"
    exporter = _Exporter(DumpFiles(root, container.domains), report)
    progress.begin(sum(counts.values()))
    for domain in domains:
        if domain.name == CANDLE.name and report.candles == "series":
            await exporter.write_series(domain, progress)
            continue
        async with aclosing(domain.db.mongo_store.sift(sort=_sort(domain))) as batches:
            async for rows, refused in batches:
                await exporter.write(domain, rows)
                exporter.skip(domain, refused)
                progress.advance(len(rows) + len(refused))
    await run_sync(os.sync)
    report.seconds = time.perf_counter() - started
    return report


@dataclass
class _Exporter:
    dump: DumpFiles
    report: Exported
    created: int = 0
    """The time of the last file, in ns."""

    async def write(self, domain: DomainServices, rows: Sequence[Row]) -> None:
        layout = domain.layout
        folders: dict[tuple[Any, ...], tuple[dict[str, Any], list[Write]]] = {}
        for row in rows:
            context = {name: getattr(row, name) for name in domain.db.context_type.model_fields}
            created = round(row.create_date.timestamp() * 1000) * 1_000_000
            self.created = max(created, self.created + _TICK_NS)  # rows of one bulk share a ms, and keep their order
            try:
                when = getattr(row, "when", None) if layout.timed else None
                write = Write(layout.name(context), to_text(domain, row), when, self.created)
                check_id(domain, context, getattr(row, "payload", None))
            except BacktestPersistError as error:
                self.skip(domain, [(row.id, error)])
                continue
            key = tuple(context[name] for name in layout.directory_fields)
            folders.setdefault(key, (context, []))[1].append(write)
        for context, writes in folders.values():
            folder = self.dump.folder(domain.name, **context)
            self.report.domains[domain.name] += await folder.write(writes, flush=False)

    async def write_series(self, domain: DomainServices, progress: Progress) -> None:
        """Write all candles to series files, without a row for each."""
        writer = SeriesWriter(self.dump.root)
        documents: Sequence[Document]
        async with aclosing(domain.db.mongo_store.listing({}, _sort(domain) or [], tuple[Document, ...])) as batches:
            async for documents in batches:
                refused = await run_sync(_add_all, writer, documents)
                self.skip(domain, refused)
                self.report.domains[domain.name] += len(documents) - len(refused)
                progress.advance(len(documents))
        await run_sync(writer.close)
        self.report.series_files = writer.files

    def skip(self, domain: DomainServices, refused: Iterable[tuple[str, BacktestPersistError]]) -> None:
        self.report.skipped += [Skipped(f"{domain.collection} {row_id}", str(error)) for row_id, error in refused]


def _add_all(writer: SeriesWriter, documents: Sequence[Document]) -> list[tuple[str, BacktestPersistError]]:
    """Add the candles of documents; returns id and error of those that no file can hold."""
    refused: list[tuple[str, BacktestPersistError]] = []
    for document in documents:
        try:
            writer.add(document)
        except BacktestPersistError as error:
            refused.append((str(document["_id"]), error))
    return refused


def _sort(domain: DomainServices) -> list[tuple[str, int]] | None:
    """Return the order of an export: series in that of their index, as they may be long; None is the usual order."""
    return [(name, 1) for name in domain.db.context_type.wire_names()] if domain.family is Family.SERIES else None


def _check_empty(root: Path) -> None:
    try:
        usable = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{root} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if not usable:
        raise SettingsError(f"{root} is not an empty directory; name an empty one, or one that does not exist.")
