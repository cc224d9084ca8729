"""Duplicates: several documents of one context, as a collection without its unique index may hold.

The framework builds its indexes while it writes, and goes on without one that cannot be built.
"""

import os
from base64 import b64encode
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anyio.to_thread import run_sync
from bson import UuidRepresentation
from bson import decode as _decode  # pyright: ignore[reportUnknownVariableType]
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS
from pymongo import DeleteOne

from backtest_persist.backends.json.atomic import sync_directory
from backtest_persist.connections import CODEC_OPTIONS, Document, MongoState, Operation, aggregate
from backtest_persist.container import Container
from backtest_persist.core.indexes import BUILD_SECONDS, is_unique
from backtest_persist.errors import SettingsError
from backtest_persist.operations.domains import domain_services

__all__ = ("Duplicates", "StoredDocument", "find_duplicates", "remove_older")

_BATCH = 500
"""The number of documents that are written to the dump, and then deleted, at once."""
_SHOWN = CODEC_OPTIONS.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)


@dataclass(frozen=True)
class StoredDocument:
    """One of several documents of a context."""

    id: Any
    created: datetime | None
    """Its `createDate`; None where it has none."""
    updated: datetime | None
    """Its `updatedDate`; None where it has none."""


@dataclass(frozen=True)
class Duplicates:
    """Several documents of one context."""

    context: Mapping[str, Any]
    """The fields of the context, by their wire names; a missing one is None, as it is to an index."""
    documents: tuple[StoredDocument, ...]
    """The documents, the one that was written last first."""


async def find_duplicates(container: Container) -> dict[str, list[Duplicates]]:
    """Return the contexts that have several documents, by collection; writes nothing.

    Only collections without a unique index can have some. `StoreUnavailableError` when MongoDB does not answer.
    """
    found: dict[str, list[Duplicates]] = {}
    with container.mongo_service.accept() as state:
        for domain in domain_services(container):
            duplicates = await _find(state, domain.collection, domain.db.context_type.wire_names())
            if duplicates:
                found[domain.collection] = duplicates
    return found


async def remove_older(
    container: Container, duplicates: Mapping[str, Sequence[Duplicates]], dump: str | os.PathLike[str]
) -> dict[str, int]:
    """Delete all but the newest document of each context; returns how many were deleted, by collection.

    Each one is written to the file `dump` first: one line of JSON with its ``collection``, the ``document`` as Extended
    JSON, to be looked at, and its ``bson`` in base64, from which it can be put back exactly. The lines are on the disk
    before a document is deleted, and added to a file that exists, so this can be killed and run again. A document that
    was written to meanwhile stays.

    `SettingsError` when the file cannot be written, `WriteRejectedError` for a user who may not delete.
    """
    removed: dict[str, int] = {}
    with container.mongo_service.accept() as state, _DumpFile(Path(dump)) as file:
        for name, contexts in duplicates.items():
            older = [document.id for context in contexts for document in context.documents[1:]]
            removed[name] = 0
            for start in range(0, len(older), _BATCH):
                removed[name] += await _move(state, name, older[start : start + _BATCH], file)
    return removed


async def _find(state: MongoState, name: str, fields: Sequence[str]) -> list[Duplicates]:
    collection = state.collection(name)
    async with state.deadline(Operation("reading the indexes", name)):
        if await is_unique(collection, fields):
            return []
    dates = {"id": "$_id", "created": "$createDate", "updated": "$updatedDate"}
    pipeline = [
        {
            "$group": {
                "_id": {field: {"$ifNull": [f"${field}", None]} for field in fields},
                "documents": {"$push": dates},
            }
        },
        {"$match": {"documents.1": {"$exists": True}}},
        {"$sort": {"_id": 1}},
    ]
    async with state.deadline(Operation("the search for duplicates", name), BUILD_SECONDS):
        return [
            Duplicates(group["_id"], _newest_first(group["documents"]))
            async for group in aggregate(collection, pipeline)
        ]


def _newest_first(documents: Sequence[Mapping[str, Any]]) -> tuple[StoredDocument, ...]:
    found = [
        StoredDocument(document["id"], _date(document.get("created")), _date(document.get("updated")))
        for document in documents
    ]
    return tuple(sorted(found, key=_age, reverse=True))


def _date(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _age(document: StoredDocument) -> tuple[datetime, datetime, str]:
    never = datetime.min.replace(tzinfo=UTC)
    return document.updated or never, document.created or never, str(document.id)


async def _move(state: MongoState, name: str, ids: Sequence[Any], dump: "_DumpFile") -> int:
    """Move documents from a collection to the dump; returns how many were deleted."""
    collection: Any = state.collection(name).with_options(codec_options=DEFAULT_RAW_BSON_OPTIONS)
    deletions: list[DeleteOne] = []
    async with state.deadline(Operation("reading duplicates", name), BUILD_SECONDS):
        async for raw in collection.find({"_id": {"$in": list(ids)}}):
            document: Document = _decode(raw.raw, _SHOWN)
            await run_sync(dump.write, name, document, raw.raw)
            deletions.append(DeleteOne(_unchanged(document)))
    await run_sync(dump.flush)
    if not deletions:
        return 0
    async with state.deadline(Operation("deleting duplicates", name, write=True), BUILD_SECONDS):
        return (await state.collection(name).bulk_write(deletions, ordered=False)).deleted_count


def _unchanged(document: Document) -> dict[str, Any]:
    """Return a filter for a document as it was read: a write since then has changed its date."""
    return {"_id": document["_id"], "updatedDate": document.get("updatedDate", {"$exists": False})}


class _DumpFile:
    """A file to which documents are added, one on each line; `SettingsError` when it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with self._errors():
            self._file = self._path.open("a", encoding="utf-8")
            sync_directory(self._path.parent)
            if self._is_cut_short():
                self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what was not flushed is of documents that are still there
            self._file.close()

    def write(self, collection: str, document: Document, bson: bytes) -> None:
        """Add a document of a collection."""
        content = {"collection": collection, "document": document, "bson": b64encode(bson).decode()}
        line = dumps(content, json_options=CANONICAL_JSON_OPTIONS)
        with self._errors():
            self._file.write(f"{line}\n")

    def _is_cut_short(self) -> bool:
        """Whether a process was killed while it wrote the last line, whose document it has not deleted."""
        if not self._path.is_file():
            return False
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - 1))
            return file.read() not in (b"", b"\n")

    def flush(self) -> None:
        """Put all that was added on the disk."""
        with self._errors():
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise SettingsError(f"{self._path} cannot be written: {problem}.") from None
