"""Dumps: one that the TypeScript framework wrote, how to write one, and what import and export did."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bson import ObjectId

from backtest_persist import Container
from backtest_persist.operations.transfer.report import Imported

__all__ = (
    "CANDLE_TEXT",
    "CANDLE_TIME",
    "MINUTE",
    "ORIGINAL",
    "ORIGINAL_WHEN",
    "file_totals",
    "files_of",
    "stored_documents",
    "write_dump",
)

ORIGINAL: Mapping[str, str] = json.loads(
    (Path(__file__).parent / "data" / "backtest-kit-19.5.0-dump.json").read_text(encoding="utf-8")
)
"""Path -> text, as the file-based classes of backtest-kit 19.5.0 wrote them; unchanged since."""

ORIGINAL_WHEN = 1_700_000_000_000
"""The `when` of every write in `ORIGINAL`."""

MINUTE = 60_000
CANDLE_TIME = 1_600_000_020_000
CANDLE_TEXT = '{"timestamp":%d,"open":10,"high":12,"low":9,"close":11,"volume":1}'
"""The text of a candle's file, without its time."""


def write_dump(root: Path, files: Mapping[str, str]) -> None:
    """Write a dump to a directory."""
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def files_of(root: Path, *, hidden: bool = False) -> dict[str, str]:
    """Read a dump as path -> text, without its hidden tree unless `hidden`."""
    return {
        str(file.relative_to(root)): file.read_text(encoding="utf-8")
        for file in sorted(root.rglob("*"))
        if file.is_file() and (hidden or not str(file.relative_to(root)).startswith("."))
    }


async def stored_documents(container: Container) -> dict[str, list[dict[str, Any]]]:
    """Return all documents as they are stored, oldest first, without ids and dates, by collection."""
    found: dict[str, list[dict[str, Any]]] = {}
    for service in container.db_services:
        collection = container.mongo_service.collection(service.collection)
        rows = [document async for document in collection.find({}).sort([("createDate", 1), ("_id", 1)])]
        for row in rows:
            assert isinstance(row.pop("_id"), ObjectId)
            del row["createDate"], row["updatedDate"]
        if rows:
            found[service.collection] = rows
    return found


def file_totals(report: Imported) -> tuple[int, int, int, int]:
    """Return the numbers of files, new, same and skipped ones in all domains together."""
    counts = report.domains.values()
    files, new = sum(count.files for count in counts), sum(count.new for count in counts)
    return files, new, sum(count.same for count in counts), sum(count.skipped for count in counts)
