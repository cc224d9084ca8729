"""Listing: cursors over many documents, decoded in bulk, each batch an operation with its deadline."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from bson import CodecOptions, ObjectId
from bson import decode_all as _decode_all  # pyright: ignore[reportUnknownVariableType]
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from backtest_persist.connections import CODEC_OPTIONS, Collection, Document, MongoState
from backtest_persist.core.off_loop import by_size

__all__ = ("Batches", "Finder", "Listing", "Reply")

Item = TypeVar("Item")

_TIME_IS_OVER = 50
_TYPES = ("number", "string", "object", "binData", "objectId", "bool", "date", "timestamp", "regex", "javascript")
"""In the order of the server, which puts null and what is missing first; an array is sorted by its least item."""
_TYPES_AFTER: Mapping[type[Any], Sequence[str]] = {
    type(None): _TYPES,
    int: _TYPES[1:],
    Int64: _TYPES[1:],
    float: _TYPES[1:],
    str: _TYPES[2:],
    ObjectId: _TYPES[5:],
    bool: _TYPES[6:],
    datetime: _TYPES[7:],
}
_FAST_OPTIONS: CodecOptions[Document] = CODEC_OPTIONS.with_options(document_class=dict)
"""Decodes twice as fast, and makes a `DBRef` of what looks like one."""
_RAW_OPTIONS: CodecOptions[Any] = CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
"""Decodes nothing."""


class Batches:
    """Iterates over what a query finds, batch by batch; `options` are those of ``find``.

    A server works on all batches of a query together no longer than the first of them was given (maxTimeMS). With
    `resumable`, for an ascending `sort` by fields that hold no lists, what is left is then asked for anew.

    A caller that is cancelled, or leaves, waits for nothing: the driver finishes what it has begun and then closes the
    cursor in the server, in the `background`.
    """

    def __init__(
        self,
        collection: Collection,
        query: Mapping[str, Any],
        *,
        background: Callable[[Coroutine[Any, Any, None]], None],
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        skip: int = 0,
        resumable: bool = False,
        **options: Any,
    ) -> None:
        self._collection = collection
        self._query = query
        self._background = background
        self._sort = sort
        self._limit = limit
        self._limited = limit > 0
        self._resumable = resumable
        self._options = options
        self._last: list[Any] | None = None
        self._reading: asyncio.Task[bytes | None] | None = None
        self.size = 0
        """The bytes of the last batch."""
        self._cursor: Any = collection.find_raw_batches(query, sort=sort or None, limit=limit, skip=skip, **options)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Document]:
        if self._limited and not self._limit:  # a server may keep its cursor, and run out of time on it
            raise StopAsyncIteration
        try:
            raw = await self._read()
        except OperationFailure as error:
            if error.code != _TIME_IS_OVER or self._last is None:
                raise
            await self._resume(self._last)
            raw = await self._read()
        if raw is None:
            raise StopAsyncIteration
        self.size = len(raw)
        documents = await by_size(self.size, _decode, raw)
        self._limit -= min(self._limit, len(documents))
        if self._resumable and documents:
            last = [documents[-1].get(name) for name, _ in self._sort]
            self._last = last if all(type(value) in _TYPES_AFTER and value == value for value in last) else None
        return documents

    @property
    def complete(self) -> bool:
        """Whether the server has said that there is nothing more."""
        return not self._cursor.alive

    async def _read(self) -> bytes | None:
        """Read the next batch, in a task of its own: the driver, Motor's thread above all, cannot be cancelled."""
        self._reading = asyncio.create_task(_next(self._cursor))
        return await asyncio.shield(self._reading)

    async def _resume(self, last: Sequence[Any]) -> None:
        await self.aclose()
        self._last = None  # for when time is over again before there was anything
        names = [name for name, _ in self._sort]
        after = [
            {**dict(zip(names[:place], last, strict=False)), name: greater}
            for place, name in enumerate(names)  # a comparison by itself ends with the type of the value
            for greater in ({"$gt": last[place]}, {"$type": _TYPES_AFTER[type(last[place])]})
        ]
        query = {"$and": [self._query, {"$or": after}]}
        self._cursor = self._collection.find_raw_batches(query, sort=self._sort, limit=self._limit, **self._options)

    async def aclose(self) -> None:
        """Leave the cursor, which is closed in the background if the server may still have it."""
        reading, self._reading = self._reading, None
        if reading is not None and not (reading.done() and self.complete):
            self._background(_close(self._cursor, reading))


async def _next(cursor: Any) -> bytes | None:
    return await anext(cursor, None)


async def _close(cursor: Any, reading: "asyncio.Task[bytes | None]") -> None:
    with suppress(Exception):  # a courtesy
        await asyncio.wait([reading])
        await cursor.close()


class Listing(Generic[Item]):
    """Iterates over what `build` makes of the documents that a cursor finds, batch by batch.

    Each batch is an operation with its own deadline, as nobody knows how long a caller looks at the one before it.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[Batches]],
        operation: Callable[[], AbstractAsyncContextManager[None]],
        has_client: Callable[[], bool],
        build: Callable[[Sequence[Document]], Item],
    ) -> None:
        self._find = find
        self._operation = operation
        self._has_client = has_client
        self._build = build
        self._batches: Batches | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._batches is None:
            self._batches = await self._find()
        async with self._operation():
            documents = await anext(self._batches, None)
        if documents is None:
            raise StopAsyncIteration
        return await by_size(self._batches.size, self._build, documents)

    async def aclose(self) -> None:
        """Leave the cursor; without a client it is closed, and none is opened."""
        if self._batches is not None and self._has_client():
            await self._batches.aclose()


@dataclass(frozen=True)
class Reply:
    """The documents of one reply; without those that had no room in it if it is not `complete`."""

    documents: Sequence[Document] = ()
    size: int = 0
    complete: bool = True

    @property
    def mean_size(self) -> int:
        """The mean size of the documents, in bytes of BSON; 0 without any."""
        return self.size // len(self.documents) if self.documents else 0


class Finder:
    """Finds documents of a collection that are known by their ids, or by their contexts.

    `projection` names the fields to answer with.
    """

    def __init__(self, state: MongoState, collection: str) -> None:
        self._collection = state.collection(collection)
        self._raw = self._collection.with_options(codec_options=_RAW_OPTIONS)
        self._background = state.background

    async def by_ids(self, ids: Sequence[ObjectId], projection: Sequence[str] | None = None) -> Reply:
        """Find the documents with these ids by one query."""
        if len(ids) == 1:
            return await self._one({"_id": ids[0]}, projection)
        return await self._many({"_id": {"$in": ids}}, len(ids), projection) if ids else Reply()

    async def by_each(self, queries: Sequence[Mapping[str, Any]], projection: Sequence[str] | None = None) -> Reply:
        """Find what these queries select, one document each at most, by one query."""
        if len(queries) == 1:
            return await self._one(queries[0], projection)
        return await self._many({"$or": queries}, len(queries), projection) if queries else Reply()

    async def _one(self, query: Mapping[str, Any], projection: Sequence[str] | None) -> Reply:
        document: Any = await self._raw.find_one(query, projection)
        if document is None:
            return Reply()
        size = len(document.raw)
        return Reply(await by_size(size, _decode, document.raw), size)

    async def _many(self, query: Mapping[str, Any], count: int, projection: Sequence[str] | None) -> Reply:
        """Read one reply, for which the server takes no more than 16 MiB of documents."""
        options: dict[str, Any] = {"projection": projection, "batch_size": count + 1, "background": self._background}
        async with aclosing(Batches(self._collection, query, **options)) as batches:
            nothing: list[Document] = []
            documents = await anext(batches, nothing)
            return Reply(documents, batches.size, batches.complete)


def _decode(raw: bytes) -> list[Document]:
    return _decode_all(raw, CODEC_OPTIONS if b"$ref" in raw else _FAST_OPTIONS)
