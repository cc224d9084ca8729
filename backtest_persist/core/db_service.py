"""DbService: cache-first verified reads, atomic upserts and whole lists over one MongoDB collection."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial, wraps
from inspect import isawaitable
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, cast

from bson import ObjectId, encode
from bson.errors import BSONError
from pymongo import ASCENDING, DESCENDING, DeleteOne, ReturnDocument, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from backtest_persist.connections import (
    Collection,
    Document,
    MongoService,
    MongoState,
    RedisService,
    mongo_errors,
    timed_out,
    to_plain,
)
from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.batching import Flights, Seat
from backtest_persist.core.documents import (
    Batches,
    Bulk,
    Listing,
    find_each,
    find_ids,
    holds,
    taken,
    to_object_id,
    write_bulk,
)
from backtest_persist.core.indexes import (
    BAD_HINT,
    BUILD_SECONDS,
    Index,
    drop_narrow_indexes,
    narrow_indexes,
    prepare_indexes,
    unique_hint,
)
from backtest_persist.core.keys import checked_limit, checked_name, to_int
from backtest_persist.core.payload import encode_payload
from backtest_persist.core.row import Context, Row, to_wire, utc_now
from backtest_persist.errors import (
    BacktestPersistError,
    InvalidKeyError,
    InvalidPayloadError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = ("DbService", "Filter", "Page", "Restored", "Sort", "Stats", "operation")

C = TypeVar("C", bound=Context)
P = ParamSpec("P")
R = TypeVar("R", bound=Row)
S = TypeVar("S", bound="DbService[Any, Any]")
T = TypeVar("T")

_Method = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]

Filter = Mapping[str, Any]
"""A MongoDB filter; Python field names (``strategy_name``, ``id``) and wire names (``strategyName``) both work."""

Sort = Sequence[tuple[str, int]]
"""(field, 1 or -1) pairs; ``_id`` is added last unless the context is in it, so an order is always total."""

BULK_SIZE = 1000
FLIGHT_SIZE = 500
"""Reads or writes that share a round trip at most."""
READ_FLIGHTS = 2
LIST_BATCH = 1000
"""Documents of a list that one command fetches, and that are in memory at once."""
_COMBINING = ("$and", "$nor", "$or")
_RESTORE_SIZE = 500


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


@dataclass(frozen=True, eq=False)
class _Write(Generic[C]):
    """A write that waits for its turn: an upsert of all fields, or an update of another kind."""

    context: C
    now: datetime
    fields: Mapping[str, Any] | None = None
    update: Any = None
    upsert: bool = True

    def command(self) -> Any:
        if self.fields is None:
            return self.update
        return {"$set": {**self.fields, "updatedDate": self.now}, "$setOnInsert": {"createDate": self.now, "__v": 0}}


@dataclass(frozen=True, eq=False)
class _Batch:
    """Writes that wait for their turn as a whole; they answer with a number."""

    send: Callable[[MongoState, Any], Awaitable[int]]
    """By a session."""


@dataclass
class _InFlight(Generic[C, R]):
    """What an event loop has under way in one service."""

    reads: "Flights[C, R | None]"
    writes: "Flights[_Write[C] | _Batch, Any]"
    state: MongoState
    collection: Collection
    in_doubt: bool = False
    """Whether the server may still meet the last write, or one before it."""
    _session: Any = None
    _calls: "set[asyncio.Future[None]]" = field(default_factory=set["asyncio.Future[None]"])

    async def session(self) -> Any:
        """The session of all writes that take turns: the server refuses one that comes after a later one of it."""
        if self._session is None:
            starting: Any = self.state.client.start_session(causal_consistency=False)
            self._session = await starting if isawaitable(starting) else starting  # Motor's is a coroutine
        return self._session

    async def drain(self) -> None:
        await self.writes.drain()
        await self.reads.drain()

    @contextmanager
    def call(self) -> Generator[None]:
        """A call of several parts, which come one after another."""
        over = asyncio.get_running_loop().create_future()
        self._calls.add(over)
        try:
            yield
        finally:
            self._calls.discard(over)
            over.set_result(None)

    async def settle(self) -> None:
        while self._calls:
            await asyncio.wait(self._calls)
        await self.writes.drain()
        await self._fence()

    async def end(self) -> None:
        session = self._session
        if session is None or self.writes.busy:
            return
        with suppress(BacktestPersistError):
            await self._fence()
        self._session = None
        await session.end_session()

    async def _fence(self) -> None:
        """A write that changes nothing: after it the server refuses those that were sent before it."""
        if self.in_doubt and self.state.client.topology_description.has_writable_server():
            with suppress(WriteRejectedError):  # as is, then, what was sent before
                async with self.state.deadline(f"Settling {self.collection.name}", write=True):
                    await self.state.by_session(self._change_nothing)
            self.in_doubt = False

    async def _change_nothing(self) -> None:
        collection = self.collection.with_options(write_concern=WriteConcern(w=1))  # the primary is the one to refuse
        await collection.update_one({"_id": ObjectId()}, {"$set": {"__v": 0}}, session=self._session)


def operation(verb: str, *, write: bool = False) -> Callable[[_Method[S, P, T]], _Method[S, P, T]]:
    """Make one operation of a method: it has the deadline of MongoDB, and closing the container waits for it.

    Errors of the driver become ours; `verb` opens the message.
    """

    def decorate(method: _Method[S, P, T]) -> _Method[S, P, T]:
        @wraps(method)
        async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            async with self._operation(verb, write=write):  # pyright: ignore[reportPrivateUsage]
                return await method(self, *args, **kwargs)

        return bounded

    return decorate


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
        await self._ready(patience=BUILD_SECONDS)

    async def find_by_id(self, id: str) -> R | None:
        """Return the row with that id (24 hex digits), or None; a malformed id is None as well."""
        object_id = to_object_id(id)
        return None if object_id is None else await self.find_by_filter({"_id": object_id})

    @operation("find")
    async def find_by_filter(self, filter: Filter, sort: Sort | None = None) -> R | None:
        """Return the first row that matches a MongoDB filter, or None."""
        query, order = self._filter(filter), self._sort(sort)
        collection = await self._prepared()
        self.stats.reads += 1
        document = await collection.find_one(query, sort=order)
        return None if document is None else self.row_type.from_document(document)

    async def find_all(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
    ) -> list[R]:
        """Return all rows that match, oldest first unless sorted otherwise, without a cap unless given one."""
        return await self._list(filter, sort, None if limit is None else checked_limit(limit))

    async def iterate(self, filter: Filter | None = None, *, sort: Sort | None = None) -> AsyncIterator[R]:
        """Iterate over all rows that match, holding one server batch in memory."""
        async with aclosing(self._rows(filter, sort)) as batches:
            async for rows in batches:
                for row in rows:
                    yield row

    def sift(self, *, sort: Sort | None = None) -> Listing[tuple[list[R], list[tuple[str, InvalidPayloadError]]]]:
        """Iterate over all documents, batch by batch: the rows, and id and error of those that are none."""
        return self._listing({}, self._sort(sort), self.row_type.sift)

    async def paginate(
        self,
        filter: Filter,
        *,
        limit: int,
        offset: int,
        sort: Sort | None = None,
    ) -> Page[R]:
        """Return `limit` rows from `offset` on, and the total number of rows that match."""
        listing = self._list(filter, sort, checked_limit(limit), checked_limit(offset, "offset"))
        return Page(await listing, await self.count(filter))

    @operation("count")
    async def count(self, filter: Filter | None = None) -> int:
        """Count the rows that match."""
        query = self._filter({} if filter is None else filter)
        collection = await self._prepared()
        return await collection.count_documents(query)

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
                Restored.NEW if document is None else Restored.SAME if holds(document, fields) else Restored.DIFFERENT
                for (_, fields), document in zip(chunk, found, strict=True)
            ]
        return outcomes

    @operation("reading the indexes")
    async def narrow_indexes(self) -> list[str]:
        """Name the unique indexes of an older release that are narrower than this domain's context."""
        return await narrow_indexes(self._mongo.collection(self.collection), self.context_type.wire_names())

    @operation("dropping indexes", write=True)
    async def drop_narrow_indexes(self) -> list[str]:
        """Drop the indexes `narrow_indexes` names, touching no document; returns their names."""
        return await drop_narrow_indexes(self._mongo.collection(self.collection), self.context_type.wire_names())

    # --- for the domains ---

    async def _find(self, context: C) -> R | None:
        """Cache-first; reads that wait at the same time share their commands."""
        since = time.monotonic()
        state = await self._ready()
        self.stats.reads += 1
        self.stats.lookups += 1
        return await state.held(self.collection, self._open_flights).reads.ask(context, since)

    async def _upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """One atomic write: the filter is exactly the unique index, so concurrent first writes make one document.

        Writes that wait at the same time share a bulk.
        """
        return cast("R", await self._write(_Write(context, utc_now(), fields=fields)))

    async def _find_and_update(self, context: C, update: Any, *, upsert: bool) -> R | None:
        """One atomic write of another kind, in its turn among the writes of this service."""
        return await self._write(_Write(context, utc_now(), update=update, upsert=upsert))

    async def _write(self, write: _Write[C]) -> R | None:
        since = time.monotonic()
        state = await self._ready()
        return await state.held(self.collection, self._open_flights).writes.board(write, since)

    def _encode(self, payload: PayloadInput | None, context: C) -> dict[str, Any] | None:
        return encode_payload(payload, lambda: self._what(context))

    def _encode_entry(self, payload: PayloadInput, context: C) -> dict[str, Any]:
        """The payload of a list entry, which is never None."""
        encoded = self._encode(payload, context)
        if encoded is None:
            raise InvalidPayloadError(f"{self._what(context)}: a payload is a mapping or a pydantic model, not None.")
        return encoded

    # --- reads ---

    async def _read_together(self, state: MongoState, seats: Sequence[Seat[C, R | None]], seconds: float) -> None:
        """Answer lookups: a lone one by GET and find by id, many by MGET and one find."""
        keys = [seat.item.cache_key for seat in seats]
        contexts = {key: seat.item for key, seat in zip(keys, seats, strict=True)}
        try:
            context = seats[0].item if len(seats) == 1 else None
            async with state.deadline(self._doing("find", context), seconds, cut=False):
                documents, hits = await self._lookup(state.collection(self.collection), contexts)
        except BacktestPersistError as error:
            _crash(seats, error)
            return
        for key, seat in zip(keys, seats, strict=True):
            self.stats.hits += key in hits
            document = documents.get(key)
            try:
                seat.land(None if document is None else self.row_type.from_document(document))
            except InvalidPayloadError as error:
                seat.crash(error)

    async def _lookup(self, collection: Collection, contexts: Mapping[str, C]) -> tuple[dict[str, Document], Set[str]]:
        """The documents of contexts by cache key, and the keys for which Redis had the right id.

        An id is believed only if the context of its document is the same. What the ids do not lead to is queried by
        context, and its id put right in Redis.
        """
        if not contexts:  # nor is Redis asked: its silence would count as an answer
            return {}, frozenset()
        ids = await self._redis.attempt("GET", lambda: self._cache.get_many(list(contexts)), [None] * len(contexts))
        wanted = {id: key for key, cached in zip(contexts, ids, strict=True) if (id := to_object_id(cached))}
        found: dict[str, Document] = {}
        for document in await find_ids(collection, list(wanted)):
            key = wanted[document["_id"]]
            if contexts[key].matches(document):
                found[key] = document
        missing = {key: context.to_filter() for key, context in contexts.items() if key not in found}
        if not missing:
            return found, found.keys()
        names = self.context_type.wire_names()
        by_values = {tuple(filter.values()): key for key, filter in missing.items()}
        standing = {
            by_values[tuple(document[name] for name in names)]: document
            for document in await find_each(collection, list(missing.values()))
        }
        await self._remember_many([(key, str(document["_id"])) for key, document in standing.items()])
        return found | standing, found.keys()

    # --- writes ---

    async def _write_together(
        self, state: MongoState, seats: "Sequence[Seat[_Write[C] | _Batch, Any]]", seconds: float
    ) -> None:
        """Carry out writes in their order: runs of upserts as one bulk, everything else alone."""
        line = state.held(self.collection, self._open_flights)
        try:
            async with state.deadline(self._doing("write"), seconds, write=True, cut=False):
                for run in _runs(seats):
                    try:
                        session = await line.session()
                        line.in_doubt = True
                        line.in_doubt = not await state.by_session(partial(self._write_run, state, session, run))
                    except BacktestPersistError as error:
                        _crash(run, error)
        except BacktestPersistError as error:
            _crash(seats, error)

    async def _in_turn(self, state: MongoState, send: Callable[[MongoState, Any], Awaitable[int]]) -> int:
        """Send writes after those that came before them, in a task of their own: a cancelled caller cuts nothing."""
        return await state.held(self.collection, self._open_flights).writes.board(_Batch(send))

    async def _write_run(
        self, state: MongoState, session: Any, seats: "Sequence[Seat[_Write[C] | _Batch, Any]]"
    ) -> bool:
        """Whether the server has acknowledged all of them."""
        batch = seats[0].item
        if isinstance(batch, _Batch):
            seats[0].land(await batch.send(state, session))
            return True
        writes = cast("Sequence[Seat[_Write[C], R | None]]", seats)
        if len({write.item.context.cache_key for write in writes}) > 1:
            return await self._write_bulk(state, writes, session)
        await self._write_one(state, writes, session)
        return True

    async def _write_one(self, state: MongoState, seats: "Sequence[Seat[_Write[C], R | None]]", session: Any) -> None:
        """One findAndModify; of several writes of one context the last, which makes up for those before it."""
        write = seats[-1].item
        context = write.context

        def send() -> Awaitable[Document | None]:
            return state.collection(self.collection).find_one_and_update(
                context.to_filter(),
                write.command(),
                upsert=write.upsert,
                return_document=ReturnDocument.AFTER,
                hint=self._unique_index(),
                session=session,
            )

        with self._write_errors("write", context):
            try:
                document = await self._by_unique_index(state, send)
            except DuplicateKeyError:  # two first writes met in the server: by now the document exists
                document = await send()
        self.stats.writes += len(seats)
        if document is not None:
            await self._remember(context, str(document["_id"]))
        for seat in seats:
            self._land(seat, document)

    async def _write_bulk(self, state: MongoState, seats: "Sequence[Seat[_Write[C], R | None]]", session: Any) -> bool:
        """Whether the server has acknowledged all of them."""
        latest = {seat.item.context.cache_key: seat.item for seat in seats}
        with self._write_errors(f"write of {len(latest)} items"):
            bulk = await self._send_bulk(state, [(w.context, w.command()) for w in latest.values()], session)
        self.stats.writes += len(seats)
        keys = list(latest)
        new = {keys[index]: id for index, id in bulk.upserted.items()}
        refused = {keys[index]: error for index, error in bulk.refused.items()}
        await self._remember_many([(key, str(id)) for key, id in new.items()])
        known = {key: write.context for key, write in latest.items() if key not in new and key not in refused}
        documents: dict[str, Document] = {key: {"_id": id, "createDate": latest[key].now} for key, id in new.items()}
        try:
            with mongo_errors(self._doing("find")):
                documents |= (await self._lookup(state.collection(self.collection), known))[0]
        except BacktestPersistError as error:
            problem = "the write was acknowledged, but its row could not be read"
            refused |= dict.fromkeys(known, self._unknown(problem, error))
        acknowledged = True
        for seat in seats:
            key = seat.item.context.cache_key
            try:
                if key in refused:
                    with self._write_errors("write", seat.item.context):
                        raise refused[key]
                elif key in documents:
                    self._land(seat, documents[key])
                else:  # somebody removed it since
                    await self._write_one(state, [seat], session)
            except BacktestPersistError as error:
                _crash([seat], error)
                acknowledged = False
        return acknowledged

    def _unknown(self, problem: str, error: Exception) -> WriteOutcomeUnknownError:
        unknown = WriteOutcomeUnknownError(
            f"{self.collection}: {problem} ({type(error).__name__}); the next acknowledged write settles it."
        )
        unknown.__cause__ = error
        return unknown

    def _land(self, seat: "Seat[_Write[C], R | None]", document: Document | None) -> None:
        """Give a writer the row of its own write."""
        write = seat.item
        if document is not None and write.fields is not None:
            document = {
                **write.context.to_filter(),
                **write.fields,
                "_id": document["_id"],
                "createDate": document.get("createDate"),
                "updatedDate": write.now,
            }
        seat.land(None if document is None else self.row_type.from_document(document))

    @operation("find")
    async def _standing(self, contexts: Sequence[C], *, prepare: bool) -> dict[C, Document]:
        """The documents of many contexts, by one query."""
        if not contexts:
            return {}
        collection = await self._prepared() if prepare else self._mongo.collection(self.collection)
        self.stats.reads += 1
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
        with self._mongo.accept() as state:
            collection = await self._prepared()
            for start in range(0, len(documents), chunk_size):
                chunk = documents[start : start + chunk_size]
                now = utc_now()
                inserts = [
                    {"_id": ObjectId(), **document, "createDate": now, "updatedDate": now, "__v": 0}
                    for _, document in chunk
                ]
                stood: set[int] = set()
                doing = self._doing(f"write of {len(chunk)} items")
                with self._part(partial(_stored, start, len(documents))):
                    async with state.deadline(doing, write=True):
                        try:
                            await collection.insert_many(inserts, ordered=False)
                        except BulkWriteError as error:
                            stood = taken(error)
                new = [index for index in range(len(chunk)) if index not in stood]
                self.stats.writes += len(new)
                stored += len(new)
                if remember:
                    await self._remember_many([(chunk[index][0], str(inserts[index]["_id"])) for index in new])
        return stored

    async def _write_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Upsert many contexts in unordered bulks; returns how many were newly stored.

        With `replace` the fields of existing documents are set, without it the first write wins.
        """
        stored = 0
        with self._mongo.accept():
            state = await self._ready()
            with state.held(self.collection, self._open_flights).call():
                for start in range(0, len(writes), BULK_SIZE):
                    chunk = writes[start : start + BULK_SIZE]
                    with self._part(partial(_stored, start, len(writes))):
                        stored += await self._in_turn(state, partial(self._write_chunk, chunk, replace))
        return stored

    @contextmanager
    def _part(self, done: Callable[[], str]) -> Generator[None]:
        """What fails now has not undone what was done before."""
        try:
            yield
        except (StoreUnavailableError, WriteOutcomeUnknownError, WriteRejectedError) as error:
            if not done():
                raise
            problem = f"{done()}. Then: {error} Doing all of it again is safe."
            raise WriteOutcomeUnknownError(problem) from error

    async def _write_chunk(
        self, chunk: Sequence[tuple[C, Mapping[str, Any]]], replace: bool, state: MongoState, session: Any
    ) -> int:
        now = utc_now()
        on_insert = {"createDate": now, "__v": 0}
        updates = [
            (
                context,
                {"$set": {**fields, "updatedDate": now}, "$setOnInsert": on_insert}
                if replace
                else {"$setOnInsert": {**fields, "updatedDate": now, **on_insert}},
            )
            for context, fields in chunk
        ]
        with self._write_errors(f"write of {len(chunk)} items"):
            bulk = await self._send_bulk(state, updates, session)
            for error in bulk.refused.values():
                if len(bulk.refused) < len(chunk) and not isinstance(error, BulkWriteError):  # which tells that itself
                    raise self._unknown(f"{len(bulk.refused)} of {len(chunk)} items may not be stored", error)
                raise error
        self.stats.writes += len(chunk)
        await self._remember_many([(chunk[index][0].cache_key, str(id)) for index, id in bulk.upserted.items()])
        return len(bulk.upserted)

    async def _send_bulk(self, state: MongoState, updates: Sequence[tuple[C, Any]], session: Any) -> Bulk:
        hint = self._unique_index()
        upserts = [UpdateOne(context.to_filter(), update, upsert=True, hint=hint) for context, update in updates]
        return await write_bulk(
            state.collection(self.collection), upserts, session, partial(self._prepare_again, state)
        )

    def _unique_index(self) -> dict[str, int]:
        """A hint by which the server refuses, as `BAD_HINT`, what comes to a database that was dropped."""
        return unique_hint(self.context_type.wire_names())

    async def _by_unique_index(self, state: MongoState, send: Callable[[], Awaitable[T]]) -> T:
        """Send what has that hint, and again after the index was created, should it be gone."""
        try:
            return await send()
        except OperationFailure as error:
            if error.code != BAD_HINT:
                raise
        await self._prepare_again(state)
        return await send()

    async def _delete_many(self, filter: Filter) -> int:
        query = self._filter(filter)
        with self._mongo.accept():
            state = await self._ready()
            return await self._in_turn(state, partial(self._delete_all, query))

    async def _delete_all(self, query: Mapping[str, Any], state: MongoState, session: Any) -> int:
        """Delete by id: the server refuses a late command of such, but not one that names a filter."""
        collection, deleted = state.collection(self.collection), 0
        with self._part(lambda: f"{deleted} documents are deleted" if deleted else ""), self._write_errors("delete"):
            async with aclosing(Batches(collection, query, projection={"_id": 1}, batch_size=BULK_SIZE)) as batches:
                async for documents in batches:
                    deletions = [DeleteOne({"_id": document["_id"]}) for document in documents]
                    result = await collection.bulk_write(cast("Any", deletions), ordered=False, session=session)
                    deleted += result.deleted_count
            if not deleted:  # what was to be deleted may still be on its way
                await collection.bulk_write([DeleteOne({"_id": ObjectId()})], session=session)
        return deleted

    async def _remember(self, context: C, row_id: str) -> None:
        await self._redis.attempt("SET", lambda: self._cache.set(context.cache_key, row_id), None)

    async def _remember_many(self, ids: list[tuple[str, str]]) -> None:
        if len(ids) == 1:
            await self._redis.attempt("SET", lambda: self._cache.set(*ids[0]), None)
        for first in range(0, len(ids) if len(ids) > 1 else 0, BULK_SIZE):
            batch = ids[first : first + BULK_SIZE]
            await self._redis.attempt("SET", partial(self._cache.set_many, batch), None)

    async def _newest(self, filter: Filter, limit: int | None) -> list[R]:
        """All rows that match, or the newest `limit` of them; oldest first either way."""
        if limit is None:
            return await self.find_all(filter)
        rows = await self.find_all(filter, sort=(("createDate", DESCENDING), ("_id", DESCENDING)), limit=limit)
        return rows[::-1]

    async def _list(self, filter: Filter | None, sort: Sort | None, limit: int | None, skip: int = 0) -> list[R]:
        async with aclosing(self._rows(filter, sort, limit or 0, skip)) as batches:
            if limit == 0:  # which means no limit to MongoDB
                return []
            return [row async for rows in batches for row in rows]

    def _rows(self, filter: Filter | None, sort: Sort | None, limit: int = 0, skip: int = 0) -> Listing[list[R]]:
        """Iterate over rows in batches; what cannot be sent is refused before the first."""
        query = self._filter({} if filter is None else filter)
        return self._listing(query, self._sort(sort), self.row_type.from_documents, limit=limit, skip=skip)

    def _listing(
        self,
        query: Filter,
        order: Sequence[tuple[str, int]],
        build: Callable[[Sequence[Document]], T],
        *,
        limit: int = 0,
        skip: int = 0,
    ) -> Listing[T]:
        certain = {"_id", "createDate", *self.context_type.wire_names()}
        resumable = all(name in certain and direction == ASCENDING for name, direction in order)
        options: dict[str, Any] = {"sort": order, "limit": limit, "skip": skip, "resumable": resumable}

        async def find() -> Batches:
            collection = await self._prepared()
            self.stats.reads += 1
            return Batches(collection, query, batch_size=LIST_BATCH, **options)

        return Listing(find, partial(self._operation, "list"), lambda: self._mongo.is_open, build)

    def _open_flights(self, state: MongoState) -> _InFlight[C, R]:
        return _InFlight(
            Flights(
                partial(self._read_together, state),
                limit=READ_FLIGHTS,
                size=FLIGHT_SIZE,
                deadline=state.seconds,
                late=lambda context: timed_out(self._doing("find", context)),
                alone=state.limit,
            ),
            Flights(
                partial(self._write_together, state),
                limit=1,  # so that writes keep their order
                size=FLIGHT_SIZE,
                deadline=state.seconds,
                late=lambda write: timed_out(
                    self._doing("write", write.context if isinstance(write, _Write) else None), write=True
                ),
            ),
            state,
            state.collection(self.collection),
        )

    async def _prepared(self) -> Collection:
        return (await self._ready()).collection(self.collection)

    async def _ready(self, *, patience: float | None = None) -> MongoState:
        return await self._mongo.prepared(self.collection, self._prepare_first, patience=patience)

    async def _prepare_again(self, state: MongoState) -> None:
        """Create the indexes of a collection that was dropped since it was prepared, or wait until they can be used."""
        state.prepared.discard(self.collection)
        await state.prepare(self.collection, partial(self._prepare, usable=False))

    async def _prepare_first(self, state: MongoState) -> None:
        self._redis.check()  # before anything is written
        await self._prepare(state)

    async def _prepare(self, state: MongoState, *, usable: bool = True) -> None:
        collection, fields = state.collection(self.collection), self.context_type.wire_names()
        await prepare_indexes(collection, fields, self.secondary_indexes, state.seconds, usable=usable)

    def _what(self, context: C) -> str:
        return f"{self.collection} ({context.describe()})"

    def _doing(self, verb: str, context: C | None = None) -> Callable[[], str]:
        return lambda: f"{verb.capitalize()} in {self.collection if context is None else self._what(context)}"

    def _operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]:
        return self._mongo.operation(self._doing(verb), write=write)

    def _write_errors(self, verb: str, context: C | None = None) -> AbstractContextManager[None]:
        return mongo_errors(self._doing(verb, context), write=True)

    def _filter(self, given: Filter) -> dict[str, Any]:
        try:
            query = self._translated(given)
            encode(query)
        except (BSONError, OverflowError, RecursionError, ValueError) as error:
            problem = f"the filter holds a name or a value that MongoDB does not know ({type(error).__name__})"
            raise InvalidKeyError(f"{self.collection}: {problem}.") from None
        return query

    def _translated(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise InvalidKeyError(
                f"{self.collection}: a filter is a mapping of field names to values, not {type(given).__name__}."
            )
        translated: dict[str, Any] = {}
        for name, value in cast("Filter", given).items():
            if name in _COMBINING and isinstance(value, list | tuple):
                translated[name] = [self._translated(part) for part in cast("Sequence[Any]", value)]
            else:
                wire = self._wire_name(name)
                translated[wire] = _operand(value, is_id=wire == "_id")
        return translated

    def _sort(self, given: Sort | None) -> list[tuple[str, int]]:
        pairs: Any = self.default_sort if given is None else given
        if not isinstance(pairs, Sequence) or not all(map(_is_order, cast("Sequence[Any]", pairs))):
            raise InvalidKeyError(
                f"{self.collection}: a sort is a list of (field, 1 or -1), like [('createDate', -1)]."
            )
        ordered = cast("Sort", pairs) or self.default_sort
        sort = [
            (self._wire_name(checked_name(name, "a field to sort by")), int(direction)) for name, direction in ordered
        ]
        names = {name for name, _ in sort}
        total = "_id" in names or names.issuperset(self.context_type.wire_names())
        return sort if total else [*sort, ("_id", ASCENDING)]

    def _wire_name(self, name: str) -> str:
        return to_wire(name) if name in self.row_type.model_fields else name


def _runs(seats: "Sequence[Seat[_Write[Any] | _Batch, Any]]") -> "Generator[list[Seat[_Write[Any] | _Batch, Any]]]":
    """Neighbours of which one bulk is made, and everything else alone."""
    run: list[Seat[_Write[Any] | _Batch, Any]] = []
    for seat in seats:
        joins = isinstance(seat.item, _Write) and seat.item.fields is not None
        if run and not joins:
            yield run
            run = []
        run.append(seat)
        if not joins:
            yield run
            run = []
    if run:
        yield run


def _stored(start: int, total: int) -> str:
    return f"Of {total} items the first {start} are stored" if start else ""


def _crash(seats: Sequence[Seat[Any, Any]], error: BacktestPersistError) -> None:
    """Give each caller an error of its own, as tracebacks grow where they are raised."""
    for seat in seats:
        seat.crash(error.copy())


def _operand(value: Any, *, is_id: bool) -> Any:
    """A value of a filter as MongoDB knows it: enums by value, ids as ObjectId, in operators and lists as well."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping):
        operators = cast("Mapping[str, Any]", value)
        return {name: _operand(operand, is_id=is_id) for name, operand in operators.items()}
    if isinstance(value, list | tuple):
        return [_operand(item, is_id=is_id) for item in cast("Sequence[Any]", value)]
    return (to_object_id(value) or value) if is_id else value


def _is_order(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(cast("Sequence[Any]", pair)) == 2 and to_int(pair[1]) in (1, -1)
