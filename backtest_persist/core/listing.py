"""Listing: cursors over many documents, decoded in bulk, each batch an operation with its deadline."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from bson import CodecOptions, ObjectId
from bson import decode_all as _decode_all  # pyright: ignore[reportUnknownVariableType]
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from backtest_persist.connections import CODEC_OPTIONS, Collection, Document
from backtest_persist.core.off_loop import by_size

__all__ = ("Batches", "Finder", "Listing")

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
_REFERENCE = re.compile(rb"\$ref")
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
            raw = await self.read()
        except OperationFailure as error:
            if error.code != _TIME_IS_OVER or self._last is None:
                raise
            await self._resume(self._last)
            raw = await self.read()
        if raw is None:
            raise StopAsyncIteration
        self.size = len(raw)
        documents = await by_size(self.size, _decode, raw)
        self._limit -= min(self._limit, len(documents))
        if self._resumable and documents:
            last = [documents[-1].get(name) for name, _ in self._sort]
            self._last = last if all(type(value) in _TYPES_AFTER and value == value for value in last) else None
        return documents

    async def read(self) -> bytes | None:
        """Read the next batch in BSON, None at the end.

        This takes a separate task: the driver, Motor's thread above all, cannot be cancelled.
        """
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
        if reading is not None and (self._cursor.alive or not reading.done()):
            self._background(_close(self._cursor, reading))


async def _next(cursor: Any) -> bytes | None:
    return await anext(cursor, None)


async def _close(cursor: Any, reading: "asyncio.Task[bytes | None]") -> None:
    await asyncio.gather(reading, return_exceptions=True)
    with suppress(Exception):  # a courtesy
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


class Finder:
    """Finds documents of a collection that are known by their ids, or by their contexts, by one query.

    `projection` names the fields to answer with.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection.with_options(codec_options=_RAW_OPTIONS)
        self.mean_size: int | None = None
        """How large the documents are that were read or written last, in bytes; None before any was."""

    def learn(self, size: int) -> None:
        """Take into account how large documents were that were read or written."""
        self.mean_size = max(size, (size + (self.mean_size or 0)) // 2)

    async def by_ids(self, ids: Sequence[ObjectId], projection: Sequence[str] | None = None) -> list[Document]:
        """Find the documents with these ids."""
        if len(ids) == 1:
            return await self._one({"_id": ids[0]}, projection)
        return await self._many({"_id": {"$in": ids}}, len(ids), projection) if ids else []

    async def by_each(
        self, queries: Sequence[Mapping[str, Any]], projection: Sequence[str] | None = None
    ) -> list[Document]:
        """Find what these queries select, one document each at most."""
        if len(queries) == 1:
            return await self._one(queries[0], projection)
        return await self._many({"$or": queries}, len(queries), projection) if queries else []

    async def _one(self, query: Mapping[str, Any], projection: Sequence[str] | None) -> list[Document]:
        found: Any = await self._collection.find_one(query, projection)
        return [] if found is None else await self._decoded([found.raw], projection)

    async def _many(self, query: Mapping[str, Any], count: int, projection: Sequence[str] | None) -> list[Document]:
        found: list[Any] = await self._collection.find(query, projection, batch_size=count + 1).to_list(None)
        return await self._decoded([document.raw for document in found], projection)

    async def _decoded(self, raws: Sequence[bytes], projection: Sequence[str] | None) -> list[Document]:
        size = sum(map(len, raws))
        if raws and projection is None:
            self.learn(size // len(raws))
        return await by_size(size, lambda: [document for raw in raws for document in _decode(raw)])


def _decode(raw: bytes) -> list[Document]:
    """Decode documents, one after another; `raw` may be a view, in which only a pattern is found fast."""
    return _decode_all(raw, CODEC_OPTIONS if _REFERENCE.search(raw) else _FAST_OPTIONS)
