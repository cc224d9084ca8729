"""Documents on their way to and from the driver: decoding in bulk, bulk writes, comparison."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, Self, TypeVar, cast

from bson import BSON, CodecOptions, ObjectId
from bson import decode_all as _decode_all  # pyright: ignore[reportUnknownVariableType]
from bson.errors import InvalidId
from bson.int64 import Int64
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from backtest_persist.connections import CODEC_OPTIONS, Collection, Document, to_plain
from backtest_persist.core.indexes import BAD_HINT
from backtest_persist.errors import BacktestPersistError

__all__ = ("Batches", "Bulk", "Listing", "find_each", "find_ids", "holds", "taken", "to_object_id", "write_bulk")

Item = TypeVar("Item")

_DUPLICATE_KEY = 11000
_TIME_IS_OVER = 50
_TYPES = ("number", "string", "object", "binData", "objectId", "bool", "date", "timestamp", "regex", "javascript")
"""In the order of the server, which puts null and what is missing first; an array stands where its least item does."""
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
    """What a query finds, batch by batch; `options` are those of ``find``.

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
        """Let the server forget the rest; a driver that is still busy with it (Motor's thread) may fail at that."""
        with suppress(Exception):
            await self._cursor.close()


class Listing(Generic[Item]):
    """What is found, batch by batch.

    Each is an operation of its own, as nobody knows for how long the one before it was looked at.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[Batches]],
        operation: Callable[[], AbstractAsyncContextManager[None]],
        is_open: Callable[[], bool],
        build: Callable[[Sequence[Document]], Item],
    ) -> None:
        self._find = find
        self._operation = operation
        self._is_open = is_open
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
        """Let the server forget the rest, if it can be told in time; without a client it has, and none is opened."""
        if self._batches is not None and self._is_open():
            with suppress(BacktestPersistError):
                async with self._operation():
                    await self._batches.aclose()


async def find_ids(collection: Collection, ids: Sequence[ObjectId]) -> list[Document]:
    """The documents with these ids, by one query."""
    if len(ids) == 1:
        return await _find_one(collection, {"_id": ids[0]})
    return await _find_all(collection, {"_id": {"$in": ids}}, len(ids)) if ids else []


async def find_each(collection: Collection, queries: Sequence[Mapping[str, Any]]) -> list[Document]:
    """What queries select, one document each at most, by one query."""
    if len(queries) == 1:
        return await _find_one(collection, queries[0])
    return await _find_all(collection, {"$or": queries}, len(queries)) if queries else []


async def _find_one(collection: Collection, query: Mapping[str, Any]) -> list[Document]:
    document = await collection.find_one(query)
    return [] if document is None else [document]


async def _find_all(collection: Collection, query: Mapping[str, Any], count: int) -> list[Document]:
    async with aclosing(Batches(collection, query, batch_size=count + 1)) as batches:
        return [document async for batch in batches for document in batch]


def taken(error: BulkWriteError) -> set[int]:
    """The positions of inserts whose context was stored already; any other problem is raised."""
    details: Mapping[str, Any] = error.details or {}
    failures: Sequence[Mapping[str, Any]] = details.get("writeErrors") or ()
    if details.get("writeConcernErrors") or any(failure.get("code") != _DUPLICATE_KEY for failure in failures):
        raise error
    return {failure["index"] for failure in failures}


def holds(document: Document, fields: Mapping[str, Any]) -> bool:
    """Whether a document holds these fields as they would come back from the server."""
    sent = to_plain(BSON.encode(fields).decode(CODEC_OPTIONS))
    return all(name in document and _same(document[name], value) for name, value in sent.items())


def _same(one: Any, other: Any) -> bool:
    """Equal values, numbers of any type (JavaScript has one), with NaN equal to itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        ours, theirs = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return ours.keys() == theirs.keys() and all(_same(value, theirs[key]) for key, value in ours.items())
    if isinstance(one, list) and isinstance(other, list):
        items = cast("list[Any]", one), cast("list[Any]", other)
        return len(items[0]) == len(items[1]) and all(map(_same, *items))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Decimal) or isinstance(other, Decimal):  # whose digits count; a signaling NaN compares with none
        return isinstance(one, Decimal) and isinstance(other, Decimal) and str(one) == str(other)
    return one == other or (one != one and other != other)  # NaN


@dataclass
class Bulk:
    """What became of a bulk write, by the position of the operations."""

    upserted: dict[int, ObjectId]
    """The ids of what is newly stored."""
    refused: dict[int, Exception]
    """The errors of what was not stored."""


async def write_bulk(
    collection: Collection,
    operations: Sequence[UpdateOne],
    session: Any,
    prepare: Callable[[], Awaitable[None]],
) -> Bulk:
    """Write unordered: what is refused leaves the others.

    Two first writes that met in the server are tried again, and, after `prepare`, what is answered `BAD_HINT`.
    """
    bulk = Bulk({}, {})
    again: dict[int, UpdateOne] = dict(enumerate(operations))
    for may_retry in (True, False):
        positions = list(again)
        try:
            result = await collection.bulk_write(cast("Any", list(again.values())), ordered=False, session=session)
            bulk.upserted |= {positions[index]: id for index, id in (result.upserted_ids or {}).items()}
            break
        except BulkWriteError as error:
            details: Mapping[str, Any] = error.details or {}
            failures: Sequence[Mapping[str, Any]] = details.get("writeErrors") or ()
            if details.get("writeConcernErrors") or not failures:
                raise
            bulk.upserted |= {positions[entry["index"]]: entry["_id"] for entry in details.get("upserted", ())}
            codes = {failure["index"]: failure.get("code") for failure in failures if may_retry}
            met = {index for index, code in codes.items() if code in (_DUPLICATE_KEY, BAD_HINT)}
            for failure in failures:
                if failure["index"] not in met:
                    one: Document = {"writeErrors": [failure], "writeConcernErrors": []}
                    bulk.refused[positions[failure["index"]]] = BulkWriteError(one)
            again = {positions[index]: again[positions[index]] for index in met}
            if BAD_HINT in codes.values():
                try:
                    await prepare()
                except BacktestPersistError as error:  # of these alone; the others are stored
                    bulk.refused |= dict.fromkeys(again, error)
                    break
            if not again:
                break
        except PyMongoError as error:
            if may_retry:
                raise
            bulk.refused |= dict.fromkeys(positions, error)  # of these alone, too
    return bulk


def to_object_id(value: Any) -> ObjectId | None:
    """The id that 24 hex digits stand for; None for anything else."""
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and len(value) == 24 and value.isascii():
        with suppress(InvalidId):
            return ObjectId(value)
    return None
