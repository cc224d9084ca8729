"""MongoStore: the rows of one domain in a MongoDB collection, with the id index of Redis in front."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from bson import ObjectId
from pymongo import ASCENDING
from pymongo.errors import BulkWriteError

from backtest_persist.connections import Collection, Document, MongoService, MongoState, RedisService, to_plain
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.bulk import already_stored
from backtest_persist.core.equality import holds
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.id_index import IdIndex
from backtest_persist.core.indexes import BUILD_SECONDS, drop_narrow_indexes, narrow_indexes
from backtest_persist.core.listing import Batches, Listing
from backtest_persist.core.lookup import Lookup, Stats
from backtest_persist.core.off_loop import by_size
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.query import Filter, Sort, to_query, to_sort
from backtest_persist.core.row import Context, Row, to_wire, utc_now
from backtest_persist.core.schema import Schema
from backtest_persist.core.updates import claiming, inserting, removing, replacing, setting, was_removed
from backtest_persist.core.write_queue import Write, WriteQueue, partly_done
from backtest_persist.errors import IndexConflictError, InvalidPayloadError

__all__ = ("MongoStore", "Restored", "as_operation")

C = TypeVar("C", bound=Context)
P = ParamSpec("P")
R = TypeVar("R", bound=Row)
S = TypeVar("S", bound="_Operating")
T = TypeVar("T")

BATCH_SIZE = 500
"""Reads or writes that share a round trip at most."""
LIST_BATCH = 1000
"""Documents of a list that one command fetches, and that are in memory at once."""
_RESTORE_SIZE = 500


class _Operating(Protocol):
    def operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]: ...


def as_operation(
    verb: str, *, write: bool = False
) -> Callable[
    [Callable[Concatenate[S, P], Coroutine[Any, Any, T]]], Callable[Concatenate[S, P], Coroutine[Any, Any, T]]
]:
    """Make one operation of a method: it has the deadline of MongoDB, and closing the container waits for it.

    Errors of the driver become ours; `verb` opens the message.
    """

    def decorate(
        method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
        @wraps(method)
        async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            async with self.operation(verb, write=write):
                return await method(self, *args, **kwargs)

        return bounded

    return decorate


class Restored(Enum):
    """The outcome for a document that `MongoStore.restore` was given."""

    NEW = "new"
    """It was stored, or would be."""
    SAME = "same"
    """It was stored already."""
    DIFFERENT = "different"
    """Another value is stored, which was kept."""


@dataclass
class _InFlight(Generic[C, R]):
    """The reads and writes that an event loop has in flight in one collection."""

    lookup: Lookup[C, R]
    writes: WriteQueue[C, R]

    async def drain(self) -> None:
        await self.writes.drain()
        await self.lookup.drain()

    async def settle(self) -> None:
        await self.writes.settle()

    async def end(self) -> None:
        await self.writes.end()


class MongoStore(Generic[C, R]):
    """Keeps the rows of one domain in MongoDB; implements `Store`, and answers queries besides."""

    def __init__(self, schema: Schema[C, R], mongo: MongoService, redis: RedisService, cache: BaseMap) -> None:
        self.schema = schema
        self.stats = Stats()
        self.mongo = mongo
        self._ids = IdIndex(redis, cache, lambda: mongo.settings.id_memory)
        self._warned = False

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self.mongo.settings.allow_early_times

    def default_when(self) -> int | None:
        """Return the instant that a `when` left out means: none."""
        return None

    async def wait_for_init(self) -> None:
        """Create and verify the indexes; done once per client, tried again after a failure."""
        await self.ready(patience=BUILD_SECONDS)

    async def ready(self, *, patience: float | None = None) -> MongoState:
        """Return what the running event loop holds of MongoDB, once the collection is prepared there."""
        state = await self.mongo.prepared(self.schema.collection, self._prepare, patience=patience)
        state.read_only.discard(self.schema.collection)
        return state

    async def readable(self) -> MongoState:
        """Return the same, for reads alone: a narrow index of an older release prevents none, and is one warning."""
        state = self.mongo.open_state()
        if self.schema.collection in state.read_only:  # until a write finds that somebody has migrated it
            return state
        try:
            return await self.ready()
        except IndexConflictError as error:
            if not error.narrow:
                raise
            state.read_only.add(self.schema.collection)
            self._warn_of(error)
        return state

    def _warn_of(self, error: IndexConflictError) -> None:
        if not self._warned:
            self._warned = True
            names = ",".join(error.indexes)
            effect = "reads work, writes are an IndexConflictError until `backtest-persist migrate` has dropped it"
            self.mongo.logger.warning("mongo.narrow_index", collection=error.collection, index=names, effect=effect)

    async def prepared(self) -> Collection:
        """Return the collection, once it is prepared for reads."""
        return self.schema.of(await self.readable())

    def operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]:
        """Begin one operation of this collection: a deadline, translated errors, and closing waits for it."""
        return self.mongo.operation(self.schema.operation(verb, write=write))

    # --- Store ---

    async def find(self, context: C) -> R | None:
        """Return the row of a context, cache first; reads that wait at the same time share their commands."""
        since = time.monotonic()
        state = await self.readable()
        self.stats.reads += 1
        self.stats.lookups += 1
        return await self._in_flight(state).lookup.ask(context, since)

    async def upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """Store fields in one atomic write: its filter is the unique index, so first writes at once make one document.

        Writes that wait at the same time share a bulk.
        """
        document, size = await self._replace(context, fields, is_read=True)
        return await by_size(size, self.schema.row_type.from_document, document)

    async def write(self, context: C, fields: Mapping[str, Any]) -> None:
        """Store fields as `upsert` does, without an answer: after a bulk nothing is read."""
        await self._replace(context, fields, is_read=False)

    async def _replace(self, context: C, fields: Mapping[str, Any], *, is_read: bool) -> tuple[Document, int]:
        """Set all fields of a document; returns the document, as far as it `is_read`, and its size."""
        since = time.monotonic()
        self.schema.row_type.check_whole(context, fields)
        state = await self.ready()
        writes = self._in_flight(state).writes
        date = writes.date()
        write = Write(context, replaces=True, is_read=is_read, inserted={"createDate": date}, answer=("createDate",))
        with state.errors(self.schema.operation("write", context, write=True)):
            if is_deferred(fields):
                async with writes.place(write) as call:
                    fields = await asyncio.to_thread(encoded_fields, fields)
                    encoded = await asyncio.to_thread(self._replacing, writes, write.key, fields, date)
                    write.update, write.size, write.repair = encoded
                answer = call.future
            else:
                write.update, write.size, write.repair = self._replacing(writes, write.key, fields, date)
                answer = writes.submit(write, since)
        return {**context.to_filter(), **fields, **(await answer or {}), "updatedDate": date}, write.size

    def _replacing(
        self, writes: WriteQueue[C, R], key: str, fields: Mapping[str, Any], date: datetime
    ) -> tuple[Any, int, Callable[[], Any] | None]:
        """Return the update that sets all fields, its size, and what makes the update that may have to follow."""
        if writes.is_sound(key):
            return *setting(fields, date), lambda: replacing(self.schema.fields, fields, date)[0]
        return *replacing(self.schema.fields, fields, date), None

    async def update(self, context: C, update: Any, *, upsert: bool) -> R | None:
        """Send an update of another kind, one atomic write, in its turn; those that wait at the same time share a bulk.

        Returns the stored row, or None when there was nothing to update.
        """
        since = time.monotonic()
        writes = self._in_flight(await self.ready()).writes
        inserted: Mapping[str, Any] = {} if isinstance(update, list) else update.get("$setOnInsert", {})
        inserted = {**context.to_filter(), **inserted}
        document = await writes.submit(Write(context, update, upsert=upsert, inserted=inserted), since)
        return None if document is None else self.schema.row_type.from_document(document)

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Store fields unless a row that is not a tombstone is stored, atomically: True if this call did.

        The server answers with what was there before, also when the driver has to ask again, so that a lost answer
        loses no claim.
        """
        since = time.monotonic()
        self.schema.row_type.check_whole(context, fields)
        state = await self.ready()
        writes = self._in_flight(state).writes
        with state.errors(self.schema.operation("write", context, write=True)):
            date = writes.date()
            (update, size), (claim, _) = (
                command(self.schema.fields, fields, date) for command in (inserting, claiming)
            )
        answer = ("removed", "payload.removed")
        write = Write(context, update, size, claim=claim, claimable=was_removed, answer=answer)
        before = await writes.submit(write, since)
        return before is None or was_removed(before)

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Upsert many contexts in unordered bulks; returns how many are new. A cancelled caller cuts no bulk."""
        return await self._upsert_many(writes, WriteQueue[C, R].dates, replace=replace)

    async def _upsert_many(
        self,
        writes: Sequence[tuple[C, Mapping[str, Any]]],
        to_dates: Callable[[WriteQueue[C, R], int], Sequence[datetime]],
        *,
        replace: bool,
    ) -> int:
        for context, fields in writes:
            self.schema.row_type.check_whole(context, fields)
        if not writes:
            return 0
        with self.mongo.accept():
            state = await self.ready()
            queue = self._in_flight(state).writes
            dates = to_dates(queue, len(writes))
            command = partial(replacing if replace else inserting, self.schema.fields)

            def encode() -> list[tuple[Any, int]]:
                return [command(encoded_fields(fields), date) for (_, fields), date in zip(writes, dates, strict=True)]

            deferred = any(is_deferred(fields) for _, fields in writes)
            with state.errors(self.schema.operation(f"write of {len(writes)} items", write=True)):
                return await queue.upsert_many([context for context, _ in writes], encode, deferred=deferred)

    async def soft_remove(self, context: C) -> bool:
        """Turn a document into a tombstone, in one atomic write."""
        since = time.monotonic()
        writes = self._in_flight(await self.ready()).writes
        update = removing(self.schema.fields, utc_now(), timed="when" in self.schema.row_type.model_fields)
        write = Write(context, update, upsert=False, answer=("removed",))
        document = await writes.submit(write, since)
        return document is not None and document.get("removed") is True

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> RowList[R]:
        """Return the rows of a part of the collection, without tombstones, oldest first."""
        filter: dict[str, Any] = {to_wire(name): value for name, value in selection.items()}
        if "removed" not in self.schema.row_type.model_fields:
            return await self.find_newest(filter, newest)
        rows = await self.find_newest({**filter, "removed": {"$ne": True}}, newest)
        return RowList((row for row in rows if not getattr(row, "removed", False)), self.schema.row_type)

    # --- queries ---

    @as_operation("find")
    async def find_one(self, filter: Filter, sort: Sort | None = None) -> R | None:
        """Return the first row that a filter matches, or None."""
        query, order = to_query(filter, self.schema, self.allows_early_times), to_sort(sort, self.schema)
        collection = await self.prepared()
        self.stats.reads += 1
        document = await collection.find_one(query, sort=order)
        return None if document is None else self.schema.row_type.from_document(document)

    async def find_all(
        self, filter: Filter | None, sort: Sort | None = None, *, limit: int | None = None, skip: int = 0
    ) -> RowList[R]:
        """Return all rows that a filter matches, or the first `limit` of them."""
        async with aclosing(self.rows(filter, sort, limit=limit or 0, skip=skip)) as batches:
            if limit == 0:  # which means no limit to MongoDB
                return RowList((), self.schema.row_type)
            return RowList([row async for rows in batches for row in rows], self.schema.row_type)

    async def find_newest(self, filter: Filter | None, newest: int | None) -> RowList[R]:
        """Return the last `newest` rows of the default order that a filter matches, or all of them, in this order."""
        if newest is None:
            return await self.find_all(filter)
        backwards = [(name, -direction) for name, direction in to_sort(None, self.schema)]
        return (await self.find_all(filter, backwards, limit=newest))[::-1]

    def rows(
        self, filter: Filter | None, sort: Sort | None = None, *, limit: int = 0, skip: int = 0
    ) -> Listing[list[R]]:
        """Iterate over rows in batches; what cannot be sent is refused before the first.

        Documents that are no rows are left out, and named in a warning.
        """
        query, order = (
            to_query({} if filter is None else filter, self.schema, self.allows_early_times),
            to_sort(sort, self.schema),
        )
        return self.listing(query, order, self._readable, limit=limit, skip=skip)

    def _readable(self, documents: Sequence[Document]) -> list[R]:
        rows, refused = self.schema.row_type.sift(documents)
        self.mongo.logger.unreadable(self.schema.collection, refused)
        return rows

    def sift(self, *, sort: Sort | None = None) -> Listing[tuple[list[R], list[tuple[str, InvalidPayloadError]]]]:
        """Iterate over all documents in batches: the rows, and id and error of the documents that are no rows."""
        return self.listing({}, to_sort(sort, self.schema), self.schema.row_type.sift)

    def listing(
        self,
        query: Filter,
        order: Sequence[tuple[str, int]],
        build: Callable[[Sequence[Document]], T],
        *,
        limit: int = 0,
        skip: int = 0,
    ) -> Listing[T]:
        """Iterate in batches over what `build` makes of the documents that a query finds."""
        never_lists = {"_id", "createDate", *self.schema.fields}
        resumable = all(name in never_lists and direction == ASCENDING for name, direction in order)
        options: dict[str, Any] = {"sort": order, "limit": limit, "skip": skip, "resumable": resumable}

        async def find() -> Batches:
            collection = await self.prepared()
            self.stats.reads += 1
            return Batches(collection, query, batch_size=LIST_BATCH, background=self.mongo.background, **options)

        return Listing(find, partial(self.operation, "list"), lambda: self.mongo.has_client, build)

    @as_operation("count")
    async def count(self, filter: Filter | None) -> int:
        """Count the rows that a filter matches; without one, by the metadata of the collection."""
        query = None if filter is None else to_query(filter, self.schema, self.allows_early_times)
        collection = await self.prepared()
        if query is None:
            return await collection.estimated_document_count()
        return await collection.count_documents(query)

    # --- many documents ---

    async def insert_many(
        self, documents: Sequence[tuple[str, Mapping[str, Any]]], *, chunk_size: int, remember: bool
    ) -> int:
        """Insert (cache key, document) pairs in unordered bulks; a context that is stored already stays as it is.

        Several times faster than upserts; the unique index decides between writers. Returns how many are new.
        """
        stored = 0
        with self.mongo.accept():
            state = await self.ready()
            collection = self.schema.of(state)
            for start in range(0, len(documents), chunk_size):
                chunk = documents[start : start + chunk_size]
                now = utc_now()
                inserts: list[Document] = [
                    {"_id": ObjectId(), **document, "createDate": now, "updatedDate": now, "__v": 0}
                    for _, document in chunk
                ]
                known: set[int] = set()
                with partly_done(start, len(documents)):
                    async with state.deadline(self.schema.operation(f"write of {len(chunk)} items", write=True)):
                        try:
                            await collection.insert_many(inserts, ordered=False)
                        except BulkWriteError as error:
                            known = already_stored(error)
                new = [index for index in range(len(chunk)) if index not in known]
                self.stats.writes += len(new)
                stored += len(new)
                if remember:
                    await self._ids.remember_many([(chunk[index][0], inserts[index]["_id"]) for index in new])
        return stored

    async def delete_many(self, filter: Filter) -> int:
        """Delete the documents that a filter matches, in their turn among the writes; returns how many.

        One with an array in its context stays: MongoDB takes it for that of every name in the array.
        """
        return await self.delete(to_query(filter, self.schema, self.allows_early_times))

    async def delete(self, query: Mapping[str, Any]) -> int:
        """Delete the documents that a query finds, which is sent as it is; see `delete_many`."""
        no_array = [{name: {"$not": {"$type": "array"}}} for name in self.schema.fields]
        query = {"$and": [query, *no_array]}
        with self.mongo.accept():
            state = await self.ready()
            return await self._in_flight(state).writes.delete_many(query)

    async def restore(
        self, contents: Sequence[tuple[C, Mapping[str, Any]]], *, dry_run: bool = False
    ) -> list[Restored]:
        """Store documents where none is stored yet, and say of each what became of it; existing ones are not touched.

        Each is a context with the fields beside it, by their wire names, payloads encoded. With `dry_run` nothing is
        written, no index either.
        """
        outcomes: list[Restored] = []
        for start in range(0, len(contents), _RESTORE_SIZE):
            chunk = contents[start : start + _RESTORE_SIZE]
            existing = await self._find_existing([context for context, _ in chunk], prepare=not dry_run)
            found = [existing.get(context) for context, _ in chunk]
            if not dry_run:
                missing = [content for content, document in zip(chunk, found, strict=True) if document is None]
                # of one date: at a ms each, those of a long import would lie in the future
                await self._upsert_many(missing, lambda queue, count: [queue.date()] * count, replace=False)
            outcomes += [
                Restored.NEW if document is None else Restored.SAME if holds(document, fields) else Restored.DIFFERENT
                for (_, fields), document in zip(chunk, found, strict=True)
            ]
        return outcomes

    @as_operation("find")
    async def _find_existing(self, contexts: Sequence[C], *, prepare: bool) -> dict[C, Document]:
        """Find the documents of many contexts by one query, without the cache."""
        if not contexts:
            return {}
        collection = self.schema.of(await self.ready()) if prepare else self.mongo.collection(self.schema.collection)
        self.stats.reads += 1
        found = await collection.find({"$or": [context.to_filter() for context in contexts]}).to_list(None)
        by_values = {tuple(context.to_filter().values()): context for context in contexts}
        existing: dict[C, Document] = {}
        for document in map(to_plain, found):
            values = self.schema.values_in(document)
            if values is not None:
                existing[by_values[values]] = document
            else:  # it holds nothing of these contexts, but is in their way
                existing |= {context: {} for context in contexts if self.schema.may_find(context, document)}
        return existing

    # --- for a transaction ---

    def writes(self, state: MongoState) -> WriteQueue[C, R]:
        """Return the queue in which the writes of the running event loop wait."""
        return self._in_flight(state).writes

    async def remember(self, ids: Sequence[tuple[str, ObjectId]]) -> None:
        """Tell Redis the ids of new documents, by cache key."""
        await self._ids.remember_many(ids)

    # --- indexes of an older release ---

    @as_operation("reading the indexes")
    async def narrow_indexes(self) -> list[str]:
        """Name the unique indexes of an older release that are narrower than the context."""
        return await narrow_indexes(self.mongo.collection(self.schema.collection), self.schema.fields)

    @as_operation("dropping indexes", write=True)
    async def drop_narrow_indexes(self) -> list[str]:
        """Drop the indexes that `narrow_indexes` names, touching no document; returns their names."""
        return await drop_narrow_indexes(self.mongo.collection(self.schema.collection), self.schema.fields)

    # --- per event loop ---

    def _in_flight(self, state: MongoState) -> _InFlight[C, R]:
        return state.per_collection(self.schema.collection, self._open)

    def _open(self, state: MongoState) -> _InFlight[C, R]:
        lookup = Lookup(self.schema, state, self._ids, self.stats, max_size=BATCH_SIZE)
        writes = WriteQueue(self.schema, state, lookup, self._ids, self.stats, max_size=BATCH_SIZE)
        return _InFlight(lookup, writes)

    async def _prepare(self, state: MongoState) -> None:
        self._ids.check()  # before anything is written
        await self.schema.prepare(state)
