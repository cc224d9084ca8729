"""DbService: cache-first verified reads, atomic upserts and whole lists over one MongoDB collection."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, cast

from bson import BSON, ObjectId
from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from backtest_persist.connections import (
    CODEC_OPTIONS,
    Collection,
    Document,
    MongoService,
    RedisService,
    mongo_errors,
    to_plain,
)
from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.indexes import BUILD_SECONDS, Index, drop_narrow_indexes, narrow_indexes, prepare_indexes
from backtest_persist.core.keys import checked_limit
from backtest_persist.core.payload import encode_payload
from backtest_persist.core.row import Context, Row, to_wire, utc_now
from backtest_persist.errors import ClosedError

__all__ = ("DbService", "Filter", "Page", "Restored", "Sort", "Stats", "operation")

C = TypeVar("C", bound=Context)
P = ParamSpec("P")
R = TypeVar("R", bound=Row)
S = TypeVar("S", bound="DbService[Any, Any]")
T = TypeVar("T")

Filter = Mapping[str, Any]
"""A MongoDB filter; Python field names (``strategy_name``, ``id``) and wire names (``strategyName``) both work."""

Sort = Sequence[tuple[str, int]]
"""(field, 1 or -1) pairs; ``_id`` is added last, so an order is always total."""

BULK_SIZE = 1000
_READ_SIZE = 100
_RESTORE_SIZE = 500
_DUPLICATE_KEY = 11000


@dataclass(frozen=True)
class Page(Generic[R]):
    """One page of rows, and how many rows there are in all."""

    rows: list[R]
    total: int


@dataclass
class Stats:
    """What a db service has done since it was built, for reports: counts, no timings."""

    reads: int = 0
    """Reads of any kind: by context, by filter, lists."""
    lookups: int = 0
    """Reads by context, which ask the cache first."""
    hits: int = 0
    """Lookups that the cache answered with the right document."""
    writes: int = 0
    """Documents written."""


class Restored(Enum):
    """What became of a document that `DbService.restore` was given."""

    NEW = "new"
    """It was stored, or would be."""
    SAME = "same"
    """It stood there already."""
    DIFFERENT = "different"
    """Another value stands there, which was kept."""


def operation(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make one operation of a method: it has the deadline of MongoDB, and closing the container waits for it."""

    @wraps(method)
    async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._mongo.operation():  # pyright: ignore[reportPrivateUsage]
            return await method(self, *args, **kwargs)

    return bounded


class DbService(Generic[C, R]):
    """Stores the rows of one domain: MongoDB is the truth, the cache service the index in front of it."""

    collection: ClassVar[str]
    secondary_indexes: ClassVar[tuple[Index, ...]] = ()
    default_sort: ClassVar[Sort] = (("createDate", ASCENDING),)
    context_type: type[C]
    row_type: type[R]

    def __init__(self, mongo: MongoService, redis: RedisService, cache: BaseMap) -> None:
        self._mongo = mongo
        self._redis = redis
        self._cache = cache
        self.stats = Stats()

    # --- public: the same in every domain ---

    async def wait_for_init(self) -> None:
        """Create and verify the indexes of this collection; done once per client, tried again after a failure.

        Raises `IndexConflictError` or `StoreUnavailableError`. Every operation does this by itself.
        """
        await self._prepared(patience=BUILD_SECONDS)

    async def find_by_id(self, id: str) -> R | None:
        """Return the row with that id (24 hex digits), or None; a malformed id is None as well."""
        object_id = _to_object_id(id)
        return None if object_id is None else await self.find_by_filter({"_id": object_id})

    @operation
    async def find_by_filter(self, filter: Filter, sort: Sort | None = None) -> R | None:
        """Return the first row that matches a MongoDB filter, or None."""
        collection = await self._prepared()
        self.stats.reads += 1
        with self._errors("find"):
            document = await collection.find_one(self._filter(filter), sort=self._sort(sort))
        return None if document is None else self.row_type.from_document(document)

    async def find_all(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
    ) -> list[R]:
        """Return all rows that match, oldest first unless sorted otherwise, without a cap unless given one."""
        if limit is not None and checked_limit(limit) == 0:
            return []
        return [row async for row in self._rows(filter, sort, limit=limit)]

    async def iterate(self, filter: Filter | None = None, *, sort: Sort | None = None) -> AsyncIterator[R]:
        """Iterate over all rows that match, holding one server batch in memory."""
        async for row in self._rows(filter, sort):
            yield row

    async def paginate(
        self,
        filter: Filter,
        *,
        limit: int,
        offset: int,
        sort: Sort | None = None,
    ) -> Page[R]:
        """Return `limit` rows from `offset` on, and the total number of rows that match."""
        total = await self.count(filter)
        if checked_limit(limit) == 0:
            return Page([], total)
        return Page(
            [row async for row in self._rows(filter, sort, limit=limit, skip=checked_limit(offset, "offset"))], total
        )

    @operation
    async def count(self, filter: Filter | None = None) -> int:
        """Count the rows that match."""
        collection = await self._prepared()
        with self._errors("count"):
            return await collection.count_documents(self._filter(filter or {}))

    async def restore(
        self, contents: Sequence[tuple[C, Mapping[str, Any]]], *, dry_run: bool = False
    ) -> list[Restored]:
        """Store documents where none stands yet, and say of each what became of it; what stands is never touched.

        Each is a context with the fields beside it, by their wire names, payloads encoded. With `dry_run` nothing is
        written, no index either.
        """
        outcomes: list[Restored] = []
        for start in range(0, len(contents), _RESTORE_SIZE):
            chunk = contents[start : start + _RESTORE_SIZE]
            standing = await self._standing([context for context, _ in chunk], prepare=not dry_run)
            found = [standing.get(context) for context, _ in chunk]
            if not dry_run:
                missing = [content for content, document in zip(chunk, found, strict=True) if document is None]
                await self._write_many(missing, replace=False)
            outcomes += [
                Restored.NEW if document is None else Restored.SAME if _holds(document, fields) else Restored.DIFFERENT
                for (_, fields), document in zip(chunk, found, strict=True)
            ]
        return outcomes

    @operation
    async def narrow_indexes(self) -> list[str]:
        """Name the unique indexes of an older release that are narrower than this domain's context."""
        return await narrow_indexes(self._mongo.collection(self.collection), self.context_type.wire_names())

    @operation
    async def drop_narrow_indexes(self) -> list[str]:
        """Drop the indexes `narrow_indexes` names, touching no document; returns their names."""
        return await drop_narrow_indexes(self._mongo.collection(self.collection), self.context_type.wire_names())

    # --- for the domains ---

    @operation
    async def _find(self, context: C) -> R | None:
        """Cache-first: the id that Redis remembers is believed only if its document has this very context."""
        collection = await self._prepared()
        self.stats.reads += 1
        self.stats.lookups += 1
        cached = await self._redis.attempt("GET", lambda: self._cache.get(context.cache_key), None)
        object_id = _to_object_id(cached)
        with self._errors("find", context):
            if object_id is not None:
                document = await collection.find_one({"_id": object_id})
                if document is not None and context.matches(document):
                    self.stats.hits += 1
                    return self.row_type.from_document(document)
            document = await collection.find_one(context.to_filter())
        if document is None:
            return None
        row = self.row_type.from_document(document)
        await self._remember(context, row.id)
        return row

    def _encode(self, payload: PayloadInput | None, context: C) -> dict[str, Any] | None:
        return encode_payload(payload, self._what(context))

    async def _upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """One atomic write: the filter is exactly the unique index, so concurrent first writes make one document."""
        now = utc_now()
        update = {"$set": {**fields, "updatedDate": now}, "$setOnInsert": {"createDate": now, "__v": 0}}
        return await self._find_and_update(context, update, upsert=True)  # pyright: ignore[reportReturnType]

    @operation
    async def _find_and_update(self, context: C, update: Any, *, upsert: bool) -> R | None:
        collection = await self._prepared()

        def write() -> Awaitable[Document | None]:
            return collection.find_one_and_update(
                context.to_filter(), update, upsert=upsert, return_document=ReturnDocument.AFTER
            )

        with self._errors("write", context, write=True):
            try:
                document = await write()
            except DuplicateKeyError:  # two first writes met in the server: by now the document exists
                document = await write()
        self.stats.writes += 1
        if document is None:
            return None
        row = self.row_type.from_document(document)
        await self._remember(context, row.id)
        return row

    @operation
    async def _standing(self, contexts: Sequence[C], *, prepare: bool) -> dict[C, Document]:
        """The documents of many contexts, by one query."""
        if not contexts:
            return {}
        collection = await self._prepared() if prepare else self._mongo.collection(self.collection)
        self.stats.reads += 1
        with self._errors("find"):
            found = await collection.find({"$or": [context.to_filter() for context in contexts]}).to_list(None)
        by_values = {tuple(context.to_filter().values()): context for context in contexts}
        names = self.context_type.wire_names()
        return {by_values[tuple(document[name] for name in names)]: document for document in map(to_plain, found)}

    async def _insert_many(
        self, documents: Sequence[tuple[str, Mapping[str, Any]]], *, chunk_size: int, remember: bool
    ) -> int:
        """Insert (cache key, document) pairs in unordered bulks; of a context that is stored already nothing changes.

        Several times faster than upserts; the unique index decides between writers. Returns how many were new.
        """
        stored = 0
        for start in range(0, len(documents), chunk_size):
            with self._mongo.operation():
                collection = await self._prepared()
                chunk = documents[start : start + chunk_size]
                now = utc_now()
                inserts = [
                    {"_id": ObjectId(), **document, "createDate": now, "updatedDate": now, "__v": 0}
                    for _, document in chunk
                ]
                taken: set[int] = set()
                with self._errors(f"write of {len(documents)} items", write=True):
                    try:
                        await collection.insert_many(inserts, ordered=False)
                    except BulkWriteError as error:
                        taken = _taken(error)
                new = [index for index in range(len(chunk)) if index not in taken]
                self.stats.writes += len(new)
                stored += len(new)
                if remember:
                    ids = [(chunk[index][0], str(inserts[index]["_id"])) for index in new]
                    for first in range(0, len(ids), BULK_SIZE):
                        await self._remember_many(ids[first : first + BULK_SIZE])
        return stored

    async def _write_many(
        self,
        writes: Sequence[tuple[C, Mapping[str, Any]]],
        *,
        replace: bool,
        chunk_size: int = BULK_SIZE,
        remember: bool = True,
    ) -> int:
        """Upsert many contexts in unordered bulks; returns how many were newly stored.

        With `replace` the fields of existing documents are set, without it the first write wins.
        """
        stored = 0
        for start in range(0, len(writes), chunk_size):
            with self._mongo.operation():
                collection = await self._prepared()
                chunk = writes[start : start + chunk_size]
                now = utc_now()
                on_insert = {"createDate": now, "__v": 0}
                operations = [
                    UpdateOne(
                        context.to_filter(),
                        {"$set": {**fields, "updatedDate": now}, "$setOnInsert": on_insert}
                        if replace
                        else {"$setOnInsert": {**fields, "updatedDate": now, **on_insert}},
                        upsert=True,
                    )
                    for context, fields in chunk
                ]
                with self._errors(f"write of {len(writes)} items", write=True):
                    upserted = await _bulk(collection, operations)
                self.stats.writes += len(chunk)
                stored += len(upserted)
                if remember and upserted:
                    ids = [(chunk[index][0].cache_key, str(object_id)) for index, object_id in upserted.items()]
                    for first in range(0, len(ids), BULK_SIZE):
                        await self._remember_many(ids[first : first + BULK_SIZE])
        return stored

    @operation
    async def _delete_many(self, filter: Filter) -> int:
        collection = await self._prepared()
        with self._errors("delete", write=True):
            return (await collection.delete_many(self._filter(filter))).deleted_count

    async def _remember(self, context: C, row_id: str) -> None:
        await self._redis.attempt("SET", lambda: self._cache.set(context.cache_key, row_id), None)

    async def _remember_many(self, ids: list[tuple[str, str]]) -> None:
        await self._redis.attempt("SET", lambda: self._cache.set_many(ids), None)

    async def _newest(self, filter: Filter, limit: int | None) -> list[R]:
        """All rows that match, or the newest `limit` of them; oldest first either way."""
        if limit is None:
            return await self.find_all(filter)
        rows = await self.find_all(filter, sort=(("createDate", DESCENDING), ("_id", DESCENDING)), limit=limit)
        return rows[::-1]

    async def _rows(
        self,
        filter: Filter | None,
        sort: Sort | None,
        *,
        limit: int | None = None,
        skip: int = 0,
    ) -> AsyncIterator[R]:
        with self._mongo.operation():
            collection = await self._prepared()
        self.stats.reads += 1
        cursor = collection.find(self._filter(filter or {}), sort=self._sort(sort), limit=limit or 0, skip=skip)
        try:
            while True:
                with self._mongo.operation(), self._errors("list"):
                    documents = await cursor.to_list(_READ_SIZE)
                if not documents:
                    return
                for document in documents:
                    yield self.row_type.from_document(document)
        finally:
            if cursor.alive:
                with suppress(ClosedError), self._mongo.operation(), self._errors("list"):
                    await cursor.close()

    async def _prepared(self, *, patience: float | None = None) -> Collection:
        return await self._mongo.prepared(self.collection, self._prepare, patience=patience)

    async def _prepare(self, collection: Collection) -> None:
        fields = self.context_type.wire_names()
        await prepare_indexes(collection, fields, self.secondary_indexes, self._mongo.seconds)

    def _what(self, context: C) -> str:
        return f"{self.collection} ({context.describe()})"

    def _errors(self, verb: str, context: C | None = None, *, write: bool = False) -> AbstractContextManager[None]:
        what = self.collection if context is None else self._what(context)
        return mongo_errors(f"{verb.capitalize()} in {what}", write=write)

    def _filter(self, given: Filter) -> dict[str, Any]:
        translated: dict[str, Any] = {}
        for name, value in given.items():
            if name.startswith("$") and isinstance(value, Sequence) and not isinstance(value, str):
                translated[name] = [self._filter(part) for part in cast("Sequence[Filter]", value)]
            elif self._wire_name(name) == "_id" and isinstance(value, str):
                translated["_id"] = _to_object_id(value) or value
            else:
                translated[self._wire_name(name)] = value
        return translated

    def _sort(self, given: Sort | None) -> list[tuple[str, int]]:
        sort = [(self._wire_name(name), direction) for name, direction in given or self.default_sort]
        return sort if any(name == "_id" for name, _ in sort) else [*sort, ("_id", ASCENDING)]

    def _wire_name(self, name: str) -> str:
        return to_wire(name) if name in self.row_type.model_fields else name


def _taken(error: BulkWriteError) -> set[int]:
    """The positions of inserts whose context was stored already; any other problem is raised."""
    details: Mapping[str, Any] = error.details or {}
    failures: Sequence[Mapping[str, Any]] = details.get("writeErrors") or ()
    if details.get("writeConcernErrors") or any(failure.get("code") != _DUPLICATE_KEY for failure in failures):
        raise error
    return {failure["index"] for failure in failures}


def _holds(document: Document, fields: Mapping[str, Any]) -> bool:
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
    return one == other or (one != one and other != other)  # NaN


async def _bulk(collection: Collection, operations: list[UpdateOne]) -> dict[int, Any]:
    """Write unordered; returns index -> _id of the newly stored."""
    upserted: dict[int, Any] = {}
    for may_retry in (True, False):
        try:
            result = await collection.bulk_write(cast("Any", operations), ordered=False)
        except BulkWriteError as error:
            details: Mapping[str, Any] = error.details or {}
            upserted |= {entry["index"]: entry["_id"] for entry in details.get("upserted", ())}
            failed: Iterable[Mapping[str, Any]] = details.get("writeErrors") or ({},)
            if not may_retry or any(failure.get("code") != _DUPLICATE_KEY for failure in failed):
                raise
        else:
            upserted |= result.upserted_ids or {}
            break
    return upserted


def _to_object_id(value: Any) -> ObjectId | None:
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and len(value) == 24 and value.isascii() and ObjectId.is_valid(value):
        return ObjectId(value)
    return None
