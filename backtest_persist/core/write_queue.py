"""The write queue: the writes of one collection, in the order of their calls, by one session. All writes pass here.

The server numbers the writes of a session and refuses one with a lower number than it has seen. So a write that the
network held up cannot be applied after a later one: that is what sessions are for here, and what the fence does where
no later write follows.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

from bson import ObjectId
from pymongo import DeleteOne, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from backtest_persist.connections import Document, MongoState, Operation
from backtest_persist.core.batching import BATCH_BYTES, Batcher, Call
from backtest_persist.core.bulk import BulkOutcome, codes_of, write_bulk
from backtest_persist.core.change import Change, ChangeKind
from backtest_persist.core.id_index import IdIndex
from backtest_persist.core.indexes import BAD_HINT
from backtest_persist.core.listing import Batches
from backtest_persist.core.lookup import Lookup, Stats
from backtest_persist.core.row import Context, Row, utc_now
from backtest_persist.core.schema import Schema
from backtest_persist.core.sessions import change_nothing
from backtest_persist.core.updates import CONVERSION_FAILURE, inserting, removing, replacing, undated
from backtest_persist.errors import (
    BacktestPersistError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = ("BULK_SIZE", "Hold", "Update", "Write", "WriteQueue", "by_unique_index", "partly_done")

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)
T = TypeVar("T")

BULK_SIZE = 1000
"""Upserts of one call that are sent together, and between which the writes of others get their turn."""
_MS = timedelta(milliseconds=1)
_MAX_SOUND = 1000


@dataclass(eq=False)
class Write(Generic[C]):
    """The write of one context; it is answered with the stored document, or None when there is none."""

    context: C
    update: Any = None
    """The update document or pipeline; None as long as it is being encoded, while the write keeps its place."""
    size: int = 0
    """How many bytes the update has, as far as that is known."""
    upsert: bool = True
    replaces: bool = False
    """Whether it sets all fields, and so makes up for the writes of its context before it."""
    claim: Any = None
    """An update that is sent alone instead, and answered with the document as it was before.

    A bulk does not tell that. It gets `update`, which then changes nothing that is stored, so that the answer is the
    same; `claim` follows for documents that are `claimable`.
    """
    claimable: Callable[[Document], bool] | None = None
    repair: Callable[[], Any] | None = None
    """Makes the update that follows alone if the document turns out to lack a usable creation date."""
    inserted: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The fields of a new document that the answer needs."""
    answer: tuple[str, ...] | None = None
    """The wire names of the fields to answer with, beside ``_id``; None for all."""
    is_read: bool = True
    """Whether the caller needs an answer, so that a stored document is read after a bulk."""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.context.cache_key


@dataclass(eq=False)
class Upserts(Generic[C]):
    """The upserts of one call, sent in bulks of `BULK_SIZE`; they are answered with the number of new documents."""

    keys: Counter[str]
    """How often each context is still to be sent."""
    total: int
    updates: deque[tuple[C, Any, int]] | None = None
    """Contexts, update documents and their sizes, still to be sent; None as long as they are being encoded."""
    new: int = 0
    sent: int = 0

    @property
    def is_small(self) -> bool:
        """Whether one bulk has room for what is left of it, and perhaps for other calls."""
        return self.updates is not None and len(self.updates) <= BULK_SIZE

    def take(self) -> list[tuple[C, Any]]:
        """Take what is sent next."""
        taken: list[tuple[C, Any]] = []
        size = 0
        keys: set[str] = set()
        while self.updates and len(taken) < BULK_SIZE:
            context, update, bytes_ = self.updates[0]
            key = context.cache_key
            if taken and (size + bytes_ > BATCH_BYTES or key in keys):  # a bulk has no order
                break
            self.updates.popleft()
            taken.append((context, update))
            keys.add(key)
            size += bytes_
            self.keys[key] -= 1
            if not self.keys[key]:
                del self.keys[key]
        return taken


@dataclass(frozen=True, eq=False)
class Deletion:
    """The deletion of what a query finds; it is answered with the number of documents deleted."""

    query: Mapping[str, Any]


class Update(NamedTuple):
    """The update of one context, as it is sent in a transaction."""

    filter: dict[str, Any]
    update: Any
    upsert: bool
    hint: dict[str, int]
    size: int
    """How many bytes the fields have."""


@dataclass(eq=False)
class Hold:
    """Keeps all later writes waiting, once those before it are done, until it is released."""

    reached: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when no write is under way, nor can one that was sent be applied any more; or failed."""
    released: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def release(self) -> None:
        """Let the later writes go on."""
        if not self.released.done():
            self.released.set_result(None)
        self.reached.cancel()

    def ended(self, answer: "asyncio.Future[None]") -> None:
        """Take the error of the call."""
        error = None if answer.cancelled() else answer.exception()
        if error is not None and not self.reached.done():
            self.reached.set_exception(error)
            self.reached.exception()  # that of another queue may be raised instead


Item = Write[Any] | Upserts[Any] | Deletion | Hold


class WriteQueue(Batcher[Item, Any], Generic[C, R]):
    """Sends the writes of one collection in one event loop; those that wait at the same time share a bulk.

    Writes of one context are sent in the order of their calls. A write of another context need not wait for all bulks
    of a call of many items, nor for a large payload to be encoded.
    """

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
            timed_out=lambda item: self._partly_done(item, state.timed_out(self._operation(item))),
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
        self._last_sent: Upserts[Any] | None = None
        """The call of many items of which a bulk was sent last."""
        self._sound: dict[str, None] = {}
        """The contexts, by cache key, whose documents this queue has written, lately: see `is_sound`."""
        self._last_date = datetime.min.replace(tzinfo=UTC)

    # --- calls ---

    async def upsert_many(
        self, contexts: Sequence[C], encode: Callable[[], Sequence[tuple[Any, int]]], *, deferred: bool
    ) -> int:
        """Upsert many contexts, bulk by bulk, each in its turn; returns how many were newly stored.

        `encode` returns their updates with their sizes; `deferred`, it does so in a thread. A cancelled caller cuts no
        bulk.
        """
        upserts = Upserts[C](Counter(context.cache_key for context in contexts), len(contexts))

        def take(updates: Sequence[tuple[Any, int]]) -> None:
            upserts.updates = deque((c, update, size) for c, (update, size) in zip(contexts, updates, strict=True))

        if deferred:
            async with self.place(upserts) as call:
                take(await asyncio.to_thread(encode))
            return await call.future
        take(encode())
        return await self.submit(upserts)

    async def delete_many(self, query: Mapping[str, Any]) -> int:
        """Delete what a query finds, in its turn among the writes; returns how many documents were deleted."""
        return await self.submit(Deletion(query))

    def hold(self) -> Hold:
        """Take a place among the calls for writes that are sent otherwise, and keep the later ones waiting."""
        item = Hold()
        if not self.busy and not self._unsettled:
            item.reached.set_result(None)
            self.occupy(item.released)
            return item
        call = self.enqueue(item, time.monotonic())
        call.future.add_done_callback(item.ended)
        item.released.add_done_callback(lambda _: call.future.cancel())
        return item

    def updates(self, changes: Sequence[Change]) -> "list[Update]":
        """Return the updates of changes; they are dated in their order."""
        dates, names, updates = self.dates(len(changes)), self._schema.fields, list[Update]()
        timed = "when" in self._schema.row_type.model_fields
        for change, date in zip(changes, dates, strict=True):
            fields, context, size = change.fields, change.context, 0
            update: Any
            if change.kind is ChangeKind.REMOVE:
                update = removing(names, date, timed=timed)
            elif change.kind is ChangeKind.INSERT:
                update, size = inserting(names, fields, date)
            else:
                update, size = replacing(names, fields, date)  # which repairs what another program has left
            upsert = change.kind is not ChangeKind.REMOVE
            updates.append(Update(context.to_filter(), update, upsert, self._schema.unique_index, size))
        return updates

    def note(self, changes: Sequence[Change]) -> None:
        """Take into account that changes are stored."""
        self._stats.writes += len(changes)
        for change in changes:
            if change.kind is ChangeKind.REPLACE:
                self._mark_sound(change.context.cache_key)

    async def array_in(self, context: Any) -> WriteRejectedError | None:
        """Return the error for a context that a document with an array in its context is in the way of, if any is."""
        document = await self._collection.find_one(context.to_filter())
        if document is None or self._schema.values_in(document) is not None:
            return None
        return self._refused_by(context, document)

    def dates(self, count: int) -> list[datetime]:
        """Return ascending dates, a ms apart, for the items of one call: lists are sorted by them.

        They end with the present, so that what is written later by any process follows them, and begin after those of
        the call before.
        """
        first = max(utc_now() - (count - 1) * _MS, self._last_date + _MS)
        self._last_date = first + (count - 1) * _MS
        return [first + n * _MS for n in range(count)]

    def date(self) -> datetime:
        """Return the date of a single write: the present, but not before what was written earlier."""
        self._last_date = max(utc_now(), self._last_date)
        return self._last_date

    def is_sound(self, key: str) -> bool:
        """Whether the document of a context is one of ours, so that a write need not look at what is stored.

        As the context is unique, no document with an array in its place can be there as well; unless another program
        has deleted or changed ours since.
        """
        return key in self._sound

    def _note(self, writes: Iterable[Write[C]]) -> None:
        for write in writes:
            if write.replaces:
                self._mark_sound(write.key)
                self._lookup.finder.learn(write.size)

    def _mark_sound(self, key: str) -> None:
        self._sound[key] = None
        if len(self._sound) > _MAX_SOUND:
            del self._sound[next(iter(self._sound))]

    @asynccontextmanager
    async def place(self, item: Item) -> AsyncGenerator[Call[Item, Any]]:
        """Keep a place among the calls for an item that is being encoded; without one after an error."""
        call = self.enqueue(item, math.inf)
        try:
            yield call
        except BaseException:
            call.future.cancel()
            raise
        finally:
            call.bytes_before, call.size, call.was_encoded = self._bytes, self.size_of(item), True
            self._bytes += call.size
            call.submitted_at = time.monotonic()
            self._dispatch_soon()

    # --- the next batch ---

    def size_of(self, item: Item) -> int:
        """Return what is known of the size of a write."""
        if isinstance(item, Write):
            return item.size
        return sum(size for _, _, size in item.updates or ()) if isinstance(item, Upserts) else 0

    def next_batch(self, now: float) -> list[Call[Item, Any]]:
        """Take the writes that come next: several that can share a bulk, or one that goes by itself.

        A call of many items lets the others have their turn between its bulks. Whatever has to wait is passed over by
        what has nothing to do with it.
        """
        batch = _NextBatch(self._max_size, self._last_sent)
        kept: list[Call[Item, Any]] = []
        while self._pending and batch.is_open:
            call = self._pending.popleft()
            if self.has_ended(call, now):
                self.remove(call)
            elif not batch.add(call):
                kept.append(call)
        if not batch.calls and (turn := batch.next_upserts) is not None:  # there was no single write
            kept.remove(turn)
            batch.calls.append(turn)
        self._pending.extendleft(reversed(kept))
        first = batch.calls[0].item if batch.calls else None
        self._last_sent = first if isinstance(first, Upserts) and not first.is_small else None
        return batch.calls

    def busy_error(self, item: Item) -> BacktestPersistError:
        """Return the error of a write that was not sent within its deadline."""
        return self._partly_done(item, super().busy_error(item))

    # --- one batch ---

    async def _send_batch(self, calls: Sequence[Call[Item, Any]], seconds: float) -> Sequence[Call[Item, Any]]:
        """Carry out a batch; returns the calls of which a part is still to be sent."""
        item = calls[0].item
        if isinstance(item, Hold):
            await self._hold(calls[0], item)
            return ()
        try:
            async with self._state.deadline(self._operation(item if len(calls) == 1 else None), seconds, cut=False):
                if self._session is None:
                    self._session = await self._state.start_session()
                self._unsettled = True
                self._unsettled = not await self._state.by_session(self._sender(calls))
        except BacktestPersistError as error:
            for call in calls:  # each gets its own copy, as tracebacks grow where they are raised
                call.fail(self._partly_done(call.item, error.copy()))
            return ()
        return [call for call in calls if isinstance(call.item, Upserts) and call.item.updates]

    async def _hold(self, call: Call[Item, Any], hold: Hold) -> None:
        try:
            if self._unsettled:
                async with self._state.deadline(self._schema.operation("settle writes", write=True)):
                    await self._state.by_session(self._change_nothing)
                self._unsettled = False
        except BacktestPersistError as error:
            call.fail(error.copy())
            return
        if not hold.reached.done():
            hold.reached.set_result(None)
        await hold.released

    def _sender(self, calls: Sequence[Call[Item, Any]]) -> Callable[[], Awaitable[bool]]:
        """Return what sends a batch, and tells whether the server has acknowledged all of it."""
        call = calls[0]
        if isinstance(call.item, Upserts):
            upserts = cast("Sequence[Call[Upserts[C], int]]", calls)
            for each in upserts:
                each.succeeded = False
            return partial(self._send_upserts, upserts, [each.item.take() for each in upserts])
        if isinstance(call.item, Deletion):
            return partial(self._send_deletion, call, call.item.query)
        writes = cast("Sequence[Call[Write[C], Document | None]]", calls)
        several = any(other.item.key != writes[0].item.key for other in writes)
        return partial(self._write_bulk if several else self._write_one, writes)

    async def _write_one(self, calls: "Sequence[Call[Write[C], Document | None]]") -> bool:
        """Send one findAndModify: of several writes of one context the last, which makes up for those before it."""
        write = calls[-1].item
        context = write.context
        update = write.update if write.claim is None else write.claim

        def send() -> Awaitable[Document | None]:
            return self._collection.find_one_and_update(
                context.to_filter(),
                update,
                projection=write.answer,
                upsert=write.upsert,
                return_document=ReturnDocument.AFTER if write.claim is None else ReturnDocument.BEFORE,
                hint=self._schema.unique_index,
                session=self._session,
            )

        with self._errors("write", context):
            try:
                document = await by_unique_index(self._schema, self._state, send)
                if write.repair is not None and not _has_date(document):
                    update = write.repair()
                    with self._after_a_write():
                        document = await send()
            except DuplicateKeyError:  # two first writes met in the server: by now the document exists
                document = await send()
            except OperationFailure as error:
                raise (await self._refusal(context, error)) from None
        self._stats.writes += len(calls)
        self._note([write])
        if document is not None:
            await self._ids.remember(write.key, document["_id"])
        for call in calls:
            call.resolve(document)
        return True

    async def _write_bulk(self, calls: "Sequence[Call[Write[C], Document | None]]") -> bool:
        """Send one bulk, of each context the last write; returns whether the server has acknowledged all of them."""
        last = {call.item.key: call.item for call in calls}
        ids = self._ids.recall(last)
        unread = self._unread(calls, last, ids)
        sound = [ids[key] for key in unread if last[key].repair is not None]
        with self._errors(f"write of {len(last)} items"):
            bulk = await self._send_bulk(
                [(write.context, write.update, write.upsert) for write in last.values()],
                [undated(sound)] if sound else [],
            )
        if len(bulk.upserted) + len(bulk.refused) + bulk.matched > len(last):  # one is not sound
            unread = set[str]()
            bulk.refused.pop(len(last), None)
        self._stats.writes += len(calls)
        keys = list(last)
        new = {keys[index]: id for index, id in bulk.upserted.items()}
        refused = {keys[index]: error for index, error in bulk.refused.items()}
        await self._ids.remember_many((key, id) for key, id in (ids | new).items() if key not in refused)
        documents: dict[str, Document | None] = {
            key: None if last[key].claim else {"_id": id, **last[key].inserted} for key, id in new.items()
        }
        updated = {key: write for key, write in last.items() if not (key in new or key in refused or key in unread)}
        answers = [write.answer for write in updated.values()]
        fields = None if None in answers else {name for answer in answers for name in answer or ()}
        try:
            with self._state.errors(self._schema.operation("find")):
                contexts = {key: write.context for key, write in updated.items()}
                documents |= (await self._lookup.documents(contexts, fields))[0]
        except BacktestPersistError as error:
            problem = "the write was acknowledged, but its row could not be read"
            refused |= dict.fromkeys(updated, self._unknown(problem, error))
        self._note(write for key, write in last.items() if key not in refused)
        acknowledged = True
        for call in calls:
            key = call.item.key
            try:
                if key in refused:
                    with self._errors("write", call.item.context):
                        raise (await self._refusal(call.item.context, refused[key])) from None
                elif key in unread or self._is_answered(call.item, documents):
                    call.resolve(documents.get(key))
                elif call.item.claim is not None:
                    await self._write_one([call])
                else:
                    with self._after_a_write():
                        await self._write_one([call])
            except BacktestPersistError as error:
                call.fail(error.copy())
                acknowledged = False
        return acknowledged

    @staticmethod
    def _unread(
        calls: "Sequence[Call[Write[C], Any]]", last: Mapping[str, Write[C]], ids: Mapping[str, ObjectId]
    ) -> set[str]:
        """Return the contexts of a bulk whose documents need not be read after it.

        Nobody asks for an answer, and no repair can have to follow, or the bulk can tell, for which it needs their ids.
        """
        if not all(write.upsert for write in last.values()):  # it tells by how many documents its operations have found
            return set()
        return {key for key, write in last.items() if write.repair is None or key in ids} - {
            call.item.key for call in calls if call.item.is_read
        }

    @staticmethod
    def _is_answered(write: Write[C], documents: Mapping[str, Document | None]) -> bool:
        """Whether a bulk and what was read after it are the answer to a write."""
        if write.key not in documents:  # there was none, or it was removed since
            return not write.upsert
        document = documents[write.key]
        if write.repair is not None and not _has_date(document):
            return False
        return document is None or write.claimable is None or not write.claimable(document)

    async def _send_upserts(
        self, calls: "Sequence[Call[Upserts[C], int]]", parts: Sequence[Sequence[tuple[C, Any]]]
    ) -> bool:
        """Send parts of calls of many items as one bulk; returns whether the server has acknowledged all of it."""
        updates = [update for part in parts for update in part]
        with self._errors(f"write of {len(updates)} items"):
            bulk = await self._send_bulk([(context, update, True) for context, update in updates])
        self._stats.writes += len(updates) - len(bulk.refused)
        await self._ids.remember_many([(updates[index][0].cache_key, id) for index, id in bulk.upserted.items()])
        start = 0
        for call, part in zip(calls, parts, strict=True):
            upserts, end = call.item, start + len(part)
            try:
                refused = {at - start: error for at, error in bulk.refused.items() if start <= at < end}
                await self._check_refused(part, refused)
            except BacktestPersistError as error:
                call.fail(self._partly_done(upserts, error.copy()))
            else:
                upserts.new += sum(start <= at < end for at in bulk.upserted)
                upserts.sent += len(part)
                call.succeeded = True
                call.submitted_at = time.monotonic()
                if not upserts.updates:
                    call.resolve(upserts.new)
            start = end
        return not bulk.refused

    async def _check_refused(self, part: Sequence[tuple[C, Any]], refused: Mapping[int, Exception]) -> None:
        """Raise the error of a part of a call of which something was refused."""
        with self._errors(f"write of {len(part)} items"):
            for index, refusal in refused.items():
                error = await self._refusal(part[index][0], refusal)
                if len(refused) == len(part) or isinstance(error, BulkWriteError):  # which tells that itself
                    raise error
                if isinstance(error, WriteRejectedError):
                    problem = f"{error} {len(refused)} of {len(part)} items were refused; the others are stored."
                    raise WriteRejectedError(problem, collection=error.collection, context=error.context)
                raise self._unknown(f"{len(refused)} of {len(part)} items may not be stored", error)

    async def _send_deletion(self, call: Call[Item, Any], query: Mapping[str, Any]) -> bool:
        """Delete by id: the server refuses a late command that names ids, but not one that names a filter."""
        collection, deleted = self._collection, 0
        self._sound.clear()
        with _after(lambda: f"{deleted} documents are deleted" if deleted else ""), self._errors("delete"):
            async with aclosing(
                Batches(
                    collection,
                    query,
                    projection={"_id": 1},
                    batch_size=BULK_SIZE,
                    background=self._state.background,
                )
            ) as batches:
                async for documents in batches:
                    deletions: Any = [DeleteOne({"_id": document["_id"]}) for document in documents]
                    result = await collection.bulk_write(deletions, ordered=False, session=self._session)
                    deleted += result.deleted_count
            if not deleted:  # what was to be deleted may still be on its way
                await collection.bulk_write([DeleteOne({"_id": ObjectId()})], session=self._session)
        call.resolve(deleted)
        return True

    async def _send_bulk(self, updates: Iterable[tuple[C, Any, bool]], checks: Sequence[UpdateOne] = ()) -> BulkOutcome:
        hint = self._schema.unique_index
        operations = [
            UpdateOne(context.to_filter(), update, upsert=upsert, hint=hint) for context, update, upsert in updates
        ]
        prepare = partial(self._schema.prepare_again, self._state)
        return await write_bulk(self._collection, [*operations, *checks], self._session, prepare)

    # --- before other settings, and at the end ---

    async def settle(self) -> None:
        """Wait for what has begun, and let nothing that was sent have an effect later; an error if that fails."""
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
        await change_nothing(self._collection, self._session)

    # --- errors ---

    def _operation(self, item: Item | None) -> Operation:
        return self._schema.operation("write", item.context if isinstance(item, Write) else None, write=True)

    def _partly_done(self, item: Item, error: BacktestPersistError) -> BacktestPersistError:
        """Say, in the error of a call of many items, which of them are stored."""
        if not isinstance(item, Upserts) or not item.sent:
            return error
        try:
            with partly_done(item.sent, item.total):
                raise error
        except BacktestPersistError as described:
            return described

    def _unknown(self, problem: str, error: Exception) -> WriteOutcomeUnknownError:
        unknown = WriteOutcomeUnknownError(
            f"{self._schema.collection}: {problem} ({type(error).__name__}); the next acknowledged write settles it.",
            collection=self._schema.collection,
        )
        unknown.__cause__ = error
        return unknown

    @contextmanager
    def _after_a_write(self) -> Generator[None]:
        """Say, in the error of what follows an acknowledged write, that there was one."""
        try:
            with self._errors("write"):
                yield
        except (StoreUnavailableError, WriteRejectedError) as error:
            raise self._unknown("the write was acknowledged, but what had to follow it failed", error) from error

    async def _refusal(self, context: C, error: Exception) -> Exception:
        """Return the error for a write that the server has refused, which names a document that is in its way."""
        if CONVERSION_FAILURE not in codes_of(error):
            return error
        document = await self._collection.find_one(context.to_filter(), {"_id": 1})
        return self._refused_by(context, document)

    def _refused_by(self, context: C, document: Document | None) -> WriteRejectedError:
        found = "a document that is gone by now" if document is None else f"the document {document['_id']}"
        return WriteRejectedError(
            f"{self._schema.describe(context)}: nothing was stored, because {found} has an array in its context, which "
            "MongoDB takes for every value in it. Repair or remove that document.",
            collection=self._schema.collection,
            context=context.parts(),
        )

    def _errors(self, verb: str, context: C | None = None) -> AbstractContextManager[None]:
        return self._state.errors(self._schema.operation(verb, context, write=True))


def _has_date(document: Document | None) -> bool:
    return document is not None and isinstance(document.get("createDate"), datetime)


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


class _NextBatch:
    """Puts together writes that can be sent together, from calls in their order."""

    def __init__(self, max_size: int, last_sent: Upserts[Any] | None) -> None:
        self.calls: list[Call[Item, Any]] = []
        self.is_open = True
        self.next_upserts: Call[Item, Any] | None = None
        """The call of many items whose turn it is if there is no single write, after another one of this kind."""
        self._max_size = max_size
        self._last_sent = last_sent
        self._size = 0
        self._replaced: dict[str, bool] = {}
        """The contexts of the single writes of this batch, and whether all writes of them so far set all fields."""
        self._keys: set[str] = set()
        """The contexts of its calls of many items."""
        self._count = 0
        self._waiting_keys: set[str] = set()
        self._waiting_upserts: list[Upserts[Any]] = []

    def add(self, call: Call[Item, Any]) -> bool:
        """Add a call if it can go with those before it; what cannot has to stay before what is added later."""
        item = call.item
        if isinstance(item, Write):
            return self._add_write(call, item)
        if isinstance(item, Upserts) and item.updates is not None and not self._replaced:
            if self._last_sent is None:
                if self._fits(item):
                    return self._add_upserts(call, item)
            elif self.next_upserts is None or self.next_upserts.item is self._last_sent:
                has_a_turn = item is self._last_sent or self._is_free(item.keys)
                self.next_upserts = call if has_a_turn else self.next_upserts
        elif not (isinstance(item, Upserts) or self.calls or self._waiting_keys or self._waiting_upserts):
            return self._add_last(call)
        if isinstance(item, Upserts):
            self._waiting_upserts.append(item)
        else:  # nothing passes a deletion, nor what holds the queue
            self.is_open = False
        return False

    def _add_write(self, call: Call[Item, Any], write: Write[Any]) -> bool:
        joins = not self.calls or self._replaced
        if write.update is None or not joins or not self._is_free((write.key,)):
            self._waiting_keys.add(write.key)
            return False
        if self.calls:
            folds = write.replaces and self._replaced.get(write.key, True)
            fits = len(self.calls) < self._max_size and self._size + write.size <= BATCH_BYTES
            if not fits or (write.key in self._replaced and not folds):
                self.is_open = False
                return False
        self.calls.append(call)
        self._size += write.size
        self._replaced[write.key] = write.replaces
        return True

    def _fits(self, upserts: Upserts[Any]) -> bool:
        """Whether a call of many items can be the first of a batch, or join other such calls in a bulk."""
        if self.calls and (not upserts.is_small or self._count + len(upserts.updates or ()) > BULK_SIZE):
            return False
        return self._is_free(upserts.keys) and self._keys.isdisjoint(upserts.keys)

    def _add_upserts(self, call: Call[Item, Any], upserts: Upserts[Any]) -> bool:
        self.calls.append(call)
        self._keys.update(upserts.keys)
        self._count += len(upserts.updates or ())
        self._size += call.size
        self.is_open = self._count < BULK_SIZE and self._size < BATCH_BYTES
        return True

    def _add_last(self, call: Call[Item, Any]) -> bool:
        self.calls.append(call)
        self.is_open = False
        return True

    def _is_free(self, keys: Iterable[str]) -> bool:
        """Whether no write of these contexts waits."""
        if not self._waiting_keys and not self._waiting_upserts:
            return True
        return not any(
            key in self._waiting_keys or any(key in upserts.keys for upserts in self._waiting_upserts) for key in keys
        )
