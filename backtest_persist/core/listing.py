"""Listing: cursors over many documents, decoded in bulk, each batch an operation with its deadline."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from bson import CodecOptions, ObjectId
from bson import decode_all as _decode_all  # pyright: ignore[reportUnknownVariableType]
from bson.int64 import Int64
from pymongo.errors import OperationFailure

from backtest_persist.connections import CODEC_OPTIONS, Collection, Document
from backtest_persist.errors import BacktestPersistError

__all__ = ("Batches", "Listing", "find_each", "find_ids")

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


class Batches:
    """Iterates over what a query finds, batch by batch; `options` are those of ``find``.

    A server works on all batches of a query together no longer than the first of them was given (maxTimeMS). With
    `resumable`, for an ascending `sort` by fields that hold no lists, what is left is then asked for anew.
    """

    def __init__(
        self,
        collection: Collection,
        query: Mapping[str, Any],
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        skip: int = 0,
        resumable: bool = False,
        **options: Any,
    ) -> None:
        self._collection = collection
        self._query = query
        self._sort = sort
        self._limit = limit
        self._limited = limit > 0
        self._resumable = resumable
        self._options = options
        self._last: list[Any] | None = None
        self._cursor: Any = collection.find_raw_batches(query, sort=sort or None, limit=limit, skip=skip, **options)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Document]:
        if self._limited and not self._limit:  # a server may keep its cursor, and run out of time on it
            raise StopAsyncIteration
        try:
            raw: bytes = await anext(self._cursor)
        except OperationFailure as error:
            if error.code != _TIME_IS_OVER or self._last is None:
                raise
            await self._resume(self._last)
            raw = await anext(self._cursor)
        documents = _decode_all(raw, CODEC_OPTIONS if b"$ref" in raw else _FAST_OPTIONS)
        self._limit -= min(self._limit, len(documents))
        if self._resumable and documents:
            last = [documents[-1].get(name) for name, _ in self._sort]
            self._last = last if all(type(value) in _TYPES_AFTER and value == value for value in last) else None
        return documents

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
        """Close the cursor in the server; a driver that is still busy with it (Motor's thread) may fail at that."""
        with suppress(Exception):
            await self._cursor.close()


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
        return self._build(documents)

    async def aclose(self) -> None:
        """Close the cursor in the server, if it answers in time; without a client it is closed, and none is opened."""
        if self._batches is not None and self._has_client():
            with suppress(BacktestPersistError):
                async with self._operation():
                    await self._batches.aclose()


async def find_ids(collection: Collection, ids: Sequence[ObjectId]) -> list[Document]:
    """Find the documents with these ids by one query."""
    if len(ids) == 1:
        return await _find_one(collection, {"_id": ids[0]})
    return await _find_all(collection, {"_id": {"$in": ids}}, len(ids)) if ids else []


async def find_each(collection: Collection, queries: Sequence[Mapping[str, Any]]) -> list[Document]:
    """Find what these queries select, one document each at most, by one query."""
    if len(queries) == 1:
        return await _find_one(collection, queries[0])
    return await _find_all(collection, {"$or": queries}, len(queries)) if queries else []


async def _find_one(collection: Collection, query: Mapping[str, Any]) -> list[Document]:
    document = await collection.find_one(query)
    return [] if document is None else [document]


async def _find_all(collection: Collection, query: Mapping[str, Any], count: int) -> list[Document]:
    async with aclosing(Batches(collection, query, batch_size=count + 1)) as batches:
        return [document async for batch in batches for document in batch]
