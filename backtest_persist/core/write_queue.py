"""The write queue: the writes of one collection, in the order of their calls, by one session. All writes pass here.

The server numbers the writes of a session and refuses one with a lower number than it has seen. So a write that the
network held up cannot be applied after a later one: that is what sessions are for here, and what the fence does where
no later write follows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar, cast

from bson import ObjectId
from pymongo import DeleteOne, ReturnDocument, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from backtest_persist.connections import Document, MongoState
from backtest_persist.core.batching import Batcher, Call
from backtest_persist.core.bulk import BulkOutcome, codes_of, write_bulk
from backtest_persist.core.id_index import IdIndex
from backtest_persist.core.indexes import BAD_HINT
from backtest_persist.core.listing import Batches
from backtest_persist.core.lookup import Lookup, Stats
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.core.schema import Schema
from backtest_persist.core.updates import CONVERSION_FAILURE, inserting, replacing
from backtest_persist.errors import (
    BacktestPersistError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = ("BULK_SIZE", "Chunk", "Write", "WriteQueue", "by_unique_index", "partly_done")

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)
T = TypeVar("T")

BULK_SIZE = 1000
"""Writes of one call that are sent together, and between which the writes of others get their turn."""


@dataclass(frozen=True, eq=False)
class Write(Generic[C]):
    """The write of one context: an upsert of all fields, or an update of another kind."""

    context: C
    now: datetime
    fields: Mapping[str, Any] | None = None
    update: Any = None
    upsert: bool = True

    def command(self) -> Any:
        """Return the update document, or pipeline."""
        return self.update if self.fields is None else replacing(self.context.wire_names(), self.fields, self.now)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Several writes of one call that take their turn as a whole; they answer with a number."""

    send: Callable[[], Awaitable[int]]


class WriteQueue(Batcher["Write[C] | Chunk", Any], Generic[C, R]):
    """Sends the writes of one collection in one event loop; those that wait at the same time share a bulk."""

    def __init__(
        self,
        schema: Schema[C, R],
        state: MongoState,
        lookup: Lookup[C, R],
        ids: IdIndex,
        stats: Stats,
        *,
        max_size: int,
    ) -> None:
        super().__init__(
            self._send_batch,
            max_in_flight=1,  # so that writes keep their order
            max_size=max_size,
            timeout=state.seconds,
            timed_out=lambda write: state.timed_out(
                schema.operation("write", write.context if isinstance(write, Write) else None, write=True)
            ),
        )
        self._state = state
        self._schema = schema
        self._collection = schema.of(state)
        self._lookup = lookup
        self._ids = ids
        self._stats = stats
        self._session: Any = None
        self._unsettled = False
        """Whether the server may still receive the last write, or one before it."""
        self._calls: set[asyncio.Future[None]] = set()

    # --- one batch ---

    async def _send_batch(self, calls: "Sequence[Call[Write[C] | Chunk, Any]]", seconds: float) -> None:
        """Carry out writes in their order: neighbouring upserts as one bulk, everything else one by one."""
        try:
            async with self._state.deadline(self._schema.operation("write", write=True), seconds, cut=False):
                for run in _runs(calls):
                    try:
                        if self._session is None:
                            self._session = await self._state.start_session()
                        self._unsettled = True
                        self._unsettled = not await self._state.by_session(self._sender(run))
                    except BacktestPersistError as error:
                        _fail(run, error)
        except BacktestPersistError as error:
            _fail(calls, error)

    def _sender(self, calls: "Sequence[Call[Write[C] | Chunk, Any]]") -> Callable[[], Awaitable[bool]]:
        """Return what sends calls that go together, and tells whether the server has acknowledged all of them."""
        if isinstance(calls[0].item, Chunk):
            return partial(self._send_chunk, cast("Call[Chunk, int]", calls[0]))
        writes = cast("Sequence[Call[Write[C], R | None]]", calls)
        several = len({write.item.context.cache_key for write in writes}) > 1
        return partial(self._write_bulk if several else self._write_one, writes)

    async def _send_chunk(self, call: Call[Chunk, int]) -> bool:
        call.resolve(await call.item.send())
        return True

    async def _write_one(self, calls: "Sequence[Call[Write[C], R | None]]") -> bool:
        """Send one findAndModify: of several writes of one context the last, which makes up for those before it."""
        write = calls[-1].item
        context = write.context

        def send() -> Awaitable[Document | None]:
            return self._collection.find_one_and_update(
                context.to_filter(),
                write.command(),
                upsert=write.upsert,
                return_document=ReturnDocument.AFTER,
                hint=self._schema.unique_index,
                session=self._session,
            )

        with self._errors("write", context):
            try:
                document = await by_unique_index(self._schema, self._state, send)
            except DuplicateKeyError:  # two first writes met in the server: by now the document exists
                document = await send()
            except OperationFailure as error:
                raise (await self._refusal(context, error)) from None
        self._stats.writes += len(calls)
        if document is not None:
            await self._ids.remember(context.cache_key, document["_id"])
        for call in calls:
            self._resolve(call, document)
        return True

    async def _write_bulk(self, calls: "Sequence[Call[Write[C], R | None]]") -> bool:
        """Send one bulk, of each context the last write; returns whether the server has acknowledged all of them."""
        last = {call.item.context.cache_key: call.item for call in calls}
        with self._errors(f"write of {len(last)} items"):
            bulk = await self._send_bulk([(write.context, write.command()) for write in last.values()])
        self._stats.writes += len(calls)
        keys = list(last)
        new = {keys[index]: id for index, id in bulk.upserted.items()}
        refused = {keys[index]: error for index, error in bulk.refused.items()}
        await self._ids.remember_many(list(new.items()))
        replaced = {key: write.context for key, write in last.items() if key not in new and key not in refused}
        documents: dict[str, Document] = {key: {"_id": id, "createDate": last[key].now} for key, id in new.items()}
        try:
            with self._state.errors(self._schema.operation("find")):
                documents |= (await self._lookup.documents(replaced))[0]
        except BacktestPersistError as error:
            problem = "the write was acknowledged, but its row could not be read"
            refused |= dict.fromkeys(replaced, self._unknown(problem, error))
        acknowledged = True
        for call in calls:
            key = call.item.context.cache_key
            try:
                if key in refused:
                    with self._errors("write", call.item.context):
                        raise (await self._refusal(call.item.context, refused[key])) from None
                elif key in documents:
                    self._resolve(call, documents[key])
                else:  # it was removed since
                    await self._write_one([call])
            except BacktestPersistError as error:
                call.fail(error.copy())
                acknowledged = False
        return acknowledged

    def _resolve(self, call: "Call[Write[C], R | None]", document: Document | None) -> None:
        """Give a writer the row of its own write."""
        write = call.item
        if document is not None and write.fields is not None:
            document = {
                **write.context.to_filter(),
                **write.fields,
                "_id": document["_id"],
                "createDate": document.get("createDate"),
                "updatedDate": write.now,
            }
        call.resolve(None if document is None else self._schema.row_type.from_document(document))

    # --- calls of many writes ---

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Upsert many contexts, chunk by chunk, each in its turn; returns how many were newly stored.

        With `replace` the fields of existing documents are set, without it the first write wins. A cancelled caller
        cuts no chunk.
        """
        stored = 0
        with self._call():
            for start in range(0, len(writes), BULK_SIZE):
                chunk = Chunk(partial(self._send_upserts, writes[start : start + BULK_SIZE], replace))
                with partly_done(start, len(writes)):
                    stored += await self.submit(chunk)
        return stored

    async def delete_many(self, query: Mapping[str, Any]) -> int:
        """Delete what a query finds, in its turn among the writes; returns how many documents were deleted."""
        return await self.submit(Chunk(partial(self._send_deletes, query)))

    async def _send_upserts(self, chunk: Sequence[tuple[C, Mapping[str, Any]]], replace: bool) -> int:
        now = utc_now()
        command = partial(replacing if replace else inserting, self._schema.fields)
        with self._errors(f"write of {len(chunk)} items"):
            bulk = await self._send_bulk([(context, command(fields, now)) for context, fields in chunk])
            for index, refused in bulk.refused.items():
                error = await self._refusal(chunk[index][0], refused)
                if len(bulk.refused) < len(chunk) and not isinstance(
                    refused, BulkWriteError
                ):  # which tells that itself
                    raise self._unknown(f"{len(bulk.refused)} of {len(chunk)} items may not be stored", error)
                raise error
        self._stats.writes += len(chunk)
        await self._ids.remember_many([(chunk[index][0].cache_key, id) for index, id in bulk.upserted.items()])
        return len(bulk.upserted)

    async def _send_deletes(self, query: Mapping[str, Any]) -> int:
        """Delete by id: the server refuses a late command that names ids, but not one that names a filter."""
        collection, deleted = self._collection, 0
        with _after(lambda: f"{deleted} documents are deleted" if deleted else ""), self._errors("delete"):
            async with aclosing(Batches(collection, query, projection={"_id": 1}, batch_size=BULK_SIZE)) as batches:
                async for documents in batches:
                    deletions: Any = [DeleteOne({"_id": document["_id"]}) for document in documents]
                    result = await collection.bulk_write(deletions, ordered=False, session=self._session)
                    deleted += result.deleted_count
            if not deleted:  # what was to be deleted may still be on its way
                await collection.bulk_write([DeleteOne({"_id": ObjectId()})], session=self._session)
        return deleted

    async def _send_bulk(self, updates: Iterable[tuple[C, Any]]) -> BulkOutcome:
        hint = self._schema.unique_index
        upserts = [UpdateOne(context.to_filter(), update, upsert=True, hint=hint) for context, update in updates]
        prepare = partial(self._schema.prepare_again, self._state)
        return await write_bulk(self._collection, upserts, self._session, prepare)

    # --- before other settings, and at the end ---

    @contextmanager
    def _call(self) -> Generator[None]:
        """Mark a call of several chunks, which are submitted one after another."""
        finished = asyncio.get_running_loop().create_future()
        self._calls.add(finished)
        try:
            yield
        finally:
            self._calls.discard(finished)
            finished.set_result(None)

    async def settle(self) -> None:
        """Wait for what has begun, and let nothing that was sent have an effect later; an error if that fails."""
        while self._calls:
            await asyncio.wait(self._calls)
        await self.drain()
        await self._fence()

    async def end(self) -> None:
        """Begin no write any more, and let nothing that was sent have an effect later, if possible."""
        session = self._session
        if session is None or self.busy:
            return
        with suppress(BacktestPersistError):
            await self._fence()
        self._session = None
        await session.end_session()

    async def _fence(self) -> None:
        """Send a write that changes nothing: after it the server refuses those that were sent before it."""
        if self._unsettled and self._state.client.topology_description.has_writable_server():
            with suppress(WriteRejectedError):  # as is, then, what was sent before
                async with self._state.deadline(self._schema.operation("settle writes", write=True)):
                    await self._state.by_session(self._change_nothing)
            self._unsettled = False

    async def _change_nothing(self) -> None:
        collection = self._collection.with_options(write_concern=WriteConcern(w=1))  # the primary is the one to refuse
        await collection.update_one({"_id": ObjectId()}, {"$set": {"__v": 0}}, session=self._session)

    # --- errors ---

    def _unknown(self, problem: str, error: Exception) -> WriteOutcomeUnknownError:
        unknown = WriteOutcomeUnknownError(
            f"{self._schema.collection}: {problem} ({type(error).__name__}); the next acknowledged write settles it.",
            collection=self._schema.collection,
        )
        unknown.__cause__ = error
        return unknown

    async def _refusal(self, context: C, error: Exception) -> Exception:
        """Return the error for a write that the server has refused, which names a document that is in its way."""
        if CONVERSION_FAILURE not in codes_of(error):
            return error
        document = await self._collection.find_one(context.to_filter(), {"_id": 1})
        found = "a document that is gone by now" if document is None else f"the document {document['_id']}"
        return WriteRejectedError(
            f"{self._schema.describe(context)}: nothing was stored, because {found} has an array in its context, which "
            "MongoDB takes for every value in it. Repair or remove that document.",
            collection=self._schema.collection,
            context=context.parts(),
        )

    def _errors(self, verb: str, context: C | None = None) -> AbstractContextManager[None]:
        return self._state.errors(self._schema.operation(verb, context, write=True))


async def by_unique_index(schema: Schema[Any, Any], state: MongoState, send: Callable[[], Awaitable[T]]) -> T:
    """Send a command that has the unique index as its hint, and once more after the index was created if it is gone."""
    try:
        return await send()
    except OperationFailure as error:
        if error.code != BAD_HINT:
            raise
    await schema.prepare_again(state)
    return await send()


def partly_done(stored: int, total: int) -> AbstractContextManager[None]:
    """Say, in the error of a part of a call, that the parts before it are stored."""
    return _after(lambda: f"Of {total} items the first {stored} are stored" if stored else "", stored)


@contextmanager
def _after(done: Callable[[], str], stored: int | None = None) -> Generator[None]:
    try:
        yield
    except (StoreUnavailableError, WriteOutcomeUnknownError, WriteRejectedError) as error:
        if not done():
            raise
        problem = f"{done()}. Then: {error} Doing all of it again is safe."
        raise WriteOutcomeUnknownError(problem, collection=error.collection, stored=stored) from error


def _runs(calls: "Sequence[Call[Write[Any] | Chunk, Any]]") -> "Generator[list[Call[Write[Any] | Chunk, Any]]]":
    """Group calls: neighbouring upserts, of which one bulk is made, and every other one by itself."""
    run: list[Call[Write[Any] | Chunk, Any]] = []
    for call in calls:
        joins = isinstance(call.item, Write) and call.item.fields is not None
        if run and not joins:
            yield run
            run = []
        run.append(call)
        if not joins:
            yield run
            run = []
    if run:
        yield run


def _fail(calls: Sequence[Call[Any, Any]], error: BacktestPersistError) -> None:
    """Give each caller its own copy of an error, as tracebacks grow where they are raised."""
    for call in calls:
        call.fail(error.copy())
