"""Transaction: the changes of several collections, stored by MongoDB as one, or not at all.

The write queues of all these collections are held meanwhile, so that the changes have one place in the order of writes
in each of them: what was submitted before is stored before, and what was sent before cannot be applied later.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context as ContextVariables
from dataclasses import dataclass
from typing import Any, Protocol, cast

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from backtest_persist.connections import Collection, MongoService, MongoState, Operation, joined
from backtest_persist.core.batching import BATCH_BYTES
from backtest_persist.core.bulk import DUPLICATE_KEY, codes_of
from backtest_persist.core.change import Change, ChangeKind, Part
from backtest_persist.core.indexes import BAD_HINT
from backtest_persist.core.mongo_store import MongoStore
from backtest_persist.core.sessions import outdate
from backtest_persist.core.updates import CONVERSION_FAILURE, was_removed
from backtest_persist.core.write_queue import BULK_SIZE, Hold, Update, WriteQueue
from backtest_persist.errors import (
    BacktestPersistError,
    ErrorReason,
    LeaseLostError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = ("MongoCommitter", "OwnSession", "Sessions", "WithoutTransactions")

_NO_SUCH_TRANSACTION, _LIFETIME_EXCEEDED = 251, 290
_CONFLICTS = {112, _NO_SUCH_TRANSACTION, _LIFETIME_EXCEEDED, DUPLICATE_KEY}
"""Those, WriteConflict, and two first writes that met: nothing was stored, and all may be sent again."""
_TOO_LARGE = 388
"""TransactionTooLargeForCache."""
_TRANSIENT = "TransientTransactionError"
_UNKNOWN = "UnknownTransactionCommitResult"
_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.2
_MAX_DUPLICATES = 5
"""How often in a row two first writes do not meet."""
_LONG_SECONDS = 3.0
"""From when on ``transactionLifetimeLimitSeconds`` may be why a transaction is gone, which the server does not say."""
_MAX_REPAIRS = 3
"""How often missing indexes are created, as a database may be dropped again meanwhile."""


class Sessions(Protocol):
    """Gives a committer the session of its transactions."""

    @property
    def state(self) -> MongoState:
        """The client of the session."""
        ...

    async def session(self) -> Any:
        """Return the session; another one only after `abandon_session`."""
        ...

    async def abandon_session(self) -> None:
        """End the session on the server, with what it has begun, and use another one from now on."""
        ...

    async def renew_for(self, seconds: float) -> None:
        """Let the owner be one who may commit for so many seconds, or fail."""
        ...

    async def fence(self, session: Any) -> None:
        """Make the transaction that is in progress fail if its owner may not commit any more."""
        ...

    async def verify(self) -> None:
        """Raise the error of an owner that may not commit any more, if it is such a one."""
        ...


class OwnSession:
    """A session that nobody else knows of."""

    def __init__(self, mongo: MongoService) -> None:
        self._mongo = mongo
        self.collection: Collection | None = None
        """One to which it writes."""
        self._state: MongoState
        self._session: Any = None

    @property
    def state(self) -> MongoState:
        """The client of the session, or of the one that is started next."""
        return self._mongo.open_state() if self._session is None else self._state

    async def session(self) -> Any:
        """Return the session, started on first use."""
        if self._session is None:
            self._state = self._mongo.open_state()
            self._session = await self._state.start_session()
        return self._session

    async def abandon_session(self) -> None:
        """End the session, which aborts what it has begun, without waiting for that."""
        session, self._session = self._session, None
        if session is not None:
            self._state.background(end_session(self._state, session, self.collection))

    async def end(self) -> None:
        """Give the session back to the driver, for others: it has no transaction any more."""
        session, self._session = self._session, None
        if session is not None:
            await session.end_session()

    async def renew_for(self, seconds: float) -> None:
        """Let everybody commit."""

    async def fence(self, session: Any) -> None:
        """Let everybody commit."""

    async def verify(self) -> None:
        """Let everybody commit."""


async def end_session(state: MongoState, session: Any, collection: Collection | None) -> None:
    """Kill a session on the server, with the transaction that it may have open, or that arrives later."""
    with suppress(BacktestPersistError, PyMongoError, TimeoutError):
        async with asyncio.timeout(state.seconds):
            async with state.deadline(Operation("ending a session"), cut=False):
                with suppress(OperationFailure):  # not permitted
                    await state.client.admin.command("killSessions", [session.session_id])
                if collection is not None:
                    await outdate(collection, session)
    with suppress(BacktestPersistError, PyMongoError, TimeoutError):
        async with asyncio.timeout(state.seconds):
            await session.end_session()


class _Plan:
    """The part of a transaction in one collection."""

    def __init__(self, store: MongoStore[Any, Any], changes: Sequence[Change], queue: WriteQueue[Any, Any]) -> None:
        self.store = store
        self.changes = changes
        self.queue = queue
        self.claims = [change.context for change in changes if change.kind is ChangeKind.CLAIM]
        self.bulks: list[list[tuple[int, Update]]] = []
        """Positions among the changes, and the updates."""
        self.bytes = 0
        self.new: dict[int, ObjectId] = {}
        """The ids of what is newly stored, by position."""

    def encode(self) -> None:
        """Make the updates, in bulks as large as one command may be."""
        size = 0
        for position, update in enumerate(self.queue.updates(self.changes)):
            full = bool(self.bulks) and (len(self.bulks[-1]) == BULK_SIZE or size + update.size > BATCH_BYTES)
            if full or not self.bulks:
                self.bulks.append([])
                size = 0
            self.bulks[-1].append((position, update))
            size += update.size
            self.bytes += update.size

    @property
    def ids(self) -> list[tuple[str, ObjectId]]:
        """The cache keys and ids of what is newly stored."""
        return [(self.changes[position].context.cache_key, id) for position, id in self.new.items()]


class MongoCommitter:
    """Stores units of work in MongoDB, each as one transaction; implements `Committer`.

    A transaction that meets another one is carried out again, as a whole, until it succeeds or the deadline has passed:
    ``CC_MONGO_TIMEOUT_MS`` for each 8 MiB.
    """

    def __init__(self, mongo: MongoService, sessions: Sessions | None = None) -> None:
        self._mongo = mongo
        self._sessions: Sessions = OwnSession(mongo) if sessions is None else sessions
        self._commits: set[asyncio.Task[None]] = set()
        self._may_be_open = False
        """Whether the server may not know yet that the last transaction was aborted."""

    async def wait_for_init(self) -> None:
        """Find out whether the server has transactions; `SettingsError` if it has none."""
        with self._mongo.accept() as state:
            await state.select_server(Operation("looking for transactions"))
            state.check_transactions()

    async def commit(self, parts: Sequence[Part]) -> None:
        """Store the changes of all parts, or none; see `Committer`."""
        if not parts:
            return
        task = asyncio.create_task(self._commit(parts), context=ContextVariables())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        await joined(task)

    async def close(self) -> None:
        """Wait for the commits in progress, and end the session."""
        while self._commits:
            await asyncio.wait(self._commits)
        if self._may_be_open:
            await self._sessions.abandon_session()
        if isinstance(self._sessions, OwnSession):
            await self._sessions.end()

    async def _commit(self, parts: Sequence[Part]) -> None:
        with self._mongo.accept() as state:
            stores = [cast("MongoStore[Any, Any]", part.store) for part in parts]
            for store in stores:
                await store.ready()
            await state.select_server(self._operation(parts))
            state.check_transactions()
            plans = [_Plan(store, part.changes, store.writes(state)) for store, part in zip(stores, parts, strict=True)]
            if isinstance(self._sessions, OwnSession):
                self._sessions.collection = plans[0].store.schema.of(state)
            holds = [plan.queue.hold() for plan in plans]  # at once: two units meet in the same order in every queue
            try:
                for plan in plans:
                    if len(plan.changes) > BULK_SIZE:
                        await asyncio.to_thread(plan.encode)
                    else:
                        plan.encode()
                await self._transact(state, parts, plans, holds)
                for plan in plans:
                    plan.queue.note(plan.changes)
            finally:
                for hold in holds:
                    hold.release()
            remembered = (
                plan.store.remember(plan.ids) for plan, part in zip(plans, parts, strict=True) if part.remembers_ids
            )
            await asyncio.gather(*remembered)

    async def _transact(
        self, state: MongoState, parts: Sequence[Part], plans: Sequence[_Plan], holds: Sequence[Hold]
    ) -> None:
        operation = self._operation(parts)
        seconds = state.seconds * max(1, math.ceil(sum(plan.bytes for plan in plans) / BATCH_BYTES))
        for hold in holds:
            await hold.reached
        until = time.monotonic() + seconds
        pause, repairs, duplicates = _FIRST_PAUSE, 0, 0
        while True:
            started = time.monotonic()
            try:
                again = await self._send(state, operation, plans, until)
            except (StoreUnavailableError, WriteRejectedError) as error:
                raise await self._of_a_paused(error) from None
            if again is None:
                return
            took = time.monotonic() - started
            duplicates += DUPLICATE_KEY in codes_of(again.error)
            if again.lacks_an_index and repairs < _MAX_REPAIRS:
                repairs += 1
                await asyncio.gather(*(plan.store.schema.prepare_again(state) for plan in plans))
            elif took > until - time.monotonic() and (too_long := _too_long(operation, again.error, took)):
                raise too_long from None
            elif duplicates == _MAX_DUPLICATES or until - time.monotonic() <= max(pause, seconds / 20):
                raise await self._of_a_paused(self._given_up(state, operation, again.error)) from None
            else:
                await asyncio.sleep(random.uniform(0.5, 1) * pause)
                pause = min(2 * pause, _LAST_PAUSE)

    async def _send(
        self, state: MongoState, operation: Operation, plans: Sequence[_Plan], until: float
    ) -> "_Again | None":
        """Carry out one transaction; returns why nothing was stored if another one may succeed."""
        committing = False

        async def attempt() -> None:
            nonlocal committing
            committing = False
            try:
                session = await self._sessions.session()
                if self._sessions.state is not state:
                    raise _reconfigured(operation)
                await self._sessions.renew_for(max(until - time.monotonic(), 0.001))
            except (StoreUnavailableError, WriteOutcomeUnknownError) as error:
                raise _NoSessionError(error) from None
            try:
                await state.start_transaction(session)
                await self._sessions.fence(session)
                for plan in plans:
                    await self._write(state, plan, session)
            except BaseException as error:
                await self._abort(session, error)
                raise
            committing = True
            await self._end(session, until)
            self._may_be_open = False

        try:
            async with state.deadline(operation, max(until - time.monotonic(), 0.001), cut=False):
                try:
                    await state.by_session(attempt)
                except _NoSessionError as none:
                    return _Again(none.error)
                except PyMongoError as error:
                    meaning = await self._meaning(operation, plans, error, committing=committing)
                    if isinstance(meaning, _Again):
                        return meaning
                    if meaning is not error:
                        raise meaning from None  # the driver's error may quote documents
                    if committing:
                        raise
                    raise _translated(state, operation, error) from None
        except BacktestPersistError:
            if committing:
                await self._sessions.abandon_session()
            raise
        return None

    async def _of_a_paused(self, error: BacktestPersistError) -> BacktestPersistError:
        """Return what to raise in the place of an error: a process that was paused may have lost its lease meanwhile.

        It meets its deadline before the fence can tell.
        """
        try:
            await self._sessions.verify()
        except LeaseLostError as lost:
            return lost
        except BacktestPersistError:
            pass
        return error

    @staticmethod
    def _given_up(state: MongoState, operation: Operation, error: Exception) -> BacktestPersistError:
        """Return the error of a transaction that is not carried out again, of which nothing is stored."""
        if DUPLICATE_KEY in codes_of(error):
            return WriteRejectedError(
                f"{operation}: a unique index that is not that of the context refuses a document. Nothing was stored; "
                "drop that index, or write what it allows."
            )
        if isinstance(error, BacktestPersistError):
            why = type(error).__name__ if error.reason is None else error.reason
            return StoreUnavailableError(
                f"{operation}: no session could be recorded for it ({why}). Nothing was applied; try again.",
                server="MongoDB",
                host=error.host,
                setting=error.setting,
                reason=error.reason,
            )
        if not isinstance(error, OperationFailure):
            return _translated(state, operation, error)
        return StoreUnavailableError(
            f"{operation}: other writes of the same documents were in its way for the whole deadline. Nothing was "
            "applied; try again.",
            server="MongoDB",
            reason=ErrorReason.BUSY,
        )

    async def _write(self, state: MongoState, plan: _Plan, session: Any) -> None:
        plan.new.clear()
        collection = plan.store.schema.of(state)
        if plan.claims:
            query = {"$or": [context.to_filter() for context in plan.claims]}
            found = await collection.find(
                query,
                {"removed": 1, "payload.removed": 1, **dict.fromkeys(plan.store.schema.fields, 1)},
                session=session,
            ).to_list(None)
            for document in found:
                if not was_removed(document):
                    raise _taken(plan, document)
        for bulk in plan.bulks:
            if len(bulk) == 1:  # which costs the driver less as a command of its own
                [(position, write)] = bulk
                one = await collection.update_one(
                    write.filter, write.update, write.upsert, session=session, hint=write.hint
                )
                plan.new |= {} if one.upserted_id is None else {position: one.upserted_id}
                continue
            updates: Any = [
                UpdateOne(write.filter, write.update, upsert=write.upsert, hint=write.hint) for _, write in bulk
            ]
            result = await collection.bulk_write(updates, ordered=False, session=session)
            plan.new |= {bulk[index][0]: id for index, id in (result.upserted_ids or {}).items()}

    async def _abort(self, session: Any, error: BaseException) -> None:
        """End a transaction that is not to be committed; after anything but an answer of the server, its session too.

        The driver does not tell whether the server was reached. If not, the next transaction of the session ends it.
        """
        if isinstance(error, OperationFailure):
            self._may_be_open = True
            with suppress(PyMongoError):
                await session.abort_transaction()
                return
        await self._sessions.abandon_session()

    async def _end(self, session: Any, until: float) -> None:
        """Commit, and ask again as long as the answer is missing."""
        while True:
            try:
                await session.commit_transaction()
            except PyMongoError as error:
                if not error.has_error_label(_UNKNOWN) or time.monotonic() > until - _FIRST_PAUSE:
                    raise
                await asyncio.sleep(_FIRST_PAUSE)
            else:
                return

    async def _meaning(
        self, operation: Operation, plans: Sequence[_Plan], error: PyMongoError, *, committing: bool
    ) -> "Exception | _Again":
        """Return what an error of the driver means for the whole."""
        codes = codes_of(error)
        if error.has_error_label(_UNKNOWN) or (committing and not error.has_error_label(_TRANSIENT)):
            return WriteOutcomeUnknownError(  # such as of a commit that is interrupted while it waits for the majority
                f"{operation}: nobody knows whether the transaction was committed ({type(error).__name__}). Either all "
                "of it is stored or nothing.",
                server="MongoDB",
            )
        if BAD_HINT in codes:
            return _Again(error, lacks_an_index=True)
        if error.has_error_label(_TRANSIENT) or codes & _CONFLICTS:
            return _Again(error)
        if CONVERSION_FAILURE in codes:
            for plan in plans:
                for change in plan.changes:
                    if (problem := await plan.queue.array_in(change.context)) is not None:
                        return problem
        if _TOO_LARGE in codes:
            return WriteRejectedError(
                f"{operation}: it is too large for the cache of the server. Nothing was stored. Write less in one bar "
                "or checkpoint, let a run store fewer bars together (commit_every), or give mongod a larger cache."
            )
        if isinstance(error, BulkWriteError):
            return WriteRejectedError(
                f"{operation}: the server refused a write (codes {', '.join(sorted(map(str, codes)))}). Nothing of the "
                "transaction was stored."
            )
        return error

    @staticmethod
    def _operation(parts: Sequence[Part]) -> Operation:
        count, collections = sum(len(part.changes) for part in parts), len(parts)
        return Operation(f"transaction of {count} documents of {collections} collections", write=True)


def _reconfigured(operation: Operation) -> SettingsError:
    return SettingsError(
        f"{operation}: the container was given other settings since its session was started. Nothing was applied; "
        "leave this run and enter another one."
    )


def _too_long(operation: Operation, error: Exception, seconds: float) -> StoreUnavailableError | None:
    """Return the error of a transaction that the server has aborted as it took so many seconds; None for others."""
    codes = codes_of(error)
    if _LIFETIME_EXCEEDED in codes:
        condition = "which is longer than its transactionLifetimeLimitSeconds: raise"
    elif _NO_SUCH_TRANSACTION in codes and seconds > _LONG_SECONDS:
        condition = "perhaps because of its transactionLifetimeLimitSeconds. If that is less, raise"
    else:
        return None
    return StoreUnavailableError(
        f"{operation}: the server aborted it within {seconds:.1f} s, {condition} that limit, or write less between two "
        "commits. Nothing was applied.",
        server="MongoDB",
        reason=ErrorReason.TIMEOUT,
    )


def _translated(state: MongoState, operation: Operation, error: Exception) -> BacktestPersistError:
    """Return our error for one of the driver before the commit, which is never of unknown outcome."""
    for described in (operation, Operation(f"{operation.verb}, of which nothing is stored")):
        try:
            with state.errors(described):
                raise error
        except BacktestPersistError as translated:
            ours = translated
        if not isinstance(ours, WriteOutcomeUnknownError):
            break
    return ours  # pyright: ignore[reportPossiblyUnboundVariable]


class _NoSessionError(Exception):
    """There is no session for a transaction, of which nothing was sent."""

    def __init__(self, error: BacktestPersistError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _Again:
    """Nothing was stored; the transaction may be carried out again."""

    error: Exception
    lacks_an_index: bool = False
    """Whether the unique index of a collection is gone, as after its database was dropped."""


def _taken(plan: _Plan, document: Mapping[str, Any]) -> WriteRejectedError:
    for context in plan.claims:
        if context.matches(document):
            return WriteRejectedError(
                f"{plan.store.schema.describe(context)}: somebody else has claimed this entry since this unit of work "
                "did. Nothing of it was stored; do it again.",
                collection=plan.store.schema.collection,
                context=context.parts(),
            )
    return WriteRejectedError(
        f"{plan.store.schema.collection}: the document {document.get('_id')} has an array in its context. Nothing was "
        "stored; repair or remove that document.",
        collection=plan.store.schema.collection,
    )


class WithoutTransactions:
    """Stores units of work one write after the other, those of one store last: for a MongoDB without transactions.

    Killed between two of them, a process leaves a part of a unit: then the last store tells that it is not whole.
    """

    def __init__(self, last: Callable[[], Any]) -> None:
        self._last = last
        self._commits: set[asyncio.Task[None]] = set()

    async def wait_for_init(self) -> None:
        """Do nothing."""

    async def commit(self, parts: Sequence[Part]) -> None:
        """Store the changes of all parts; a failure leaves some of them stored."""
        task = asyncio.create_task(self._commit(parts), context=ContextVariables())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        await joined(task)

    async def close(self) -> None:
        """Wait for the commits in progress."""
        while self._commits:
            await asyncio.wait(self._commits)

    async def _commit(self, parts: Sequence[Part]) -> None:
        last = self._last()
        others = [part for part in parts if part.store is not last]
        await _all(_write(part.store, change) for part in others for change in part.changes)
        await _all(_write(part.store, change) for part in parts if part.store is last for change in part.changes)


async def _all(writes: Any) -> None:
    for error in await asyncio.gather(*writes, return_exceptions=True):
        if error is not None:
            raise error


async def _write(store: Any, change: Change) -> None:
    kind, context = change.kind, change.context
    if kind is ChangeKind.REMOVE:
        await store.soft_remove(context)
    elif kind is ChangeKind.INSERT:
        await store.upsert_many([(context, change.fields)], replace=False)
    elif kind is ChangeKind.REPLACE:
        await store.upsert(context, change.fields)
    elif not await store.claim(context, change.fields):
        raise WriteRejectedError(
            f"{context.describe()}: somebody else has claimed this entry since this unit of work did; other writes of "
            "the unit may be stored. Do it again.",
            context=context.parts(),
        )
