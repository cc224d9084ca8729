"""The lease document: who may write a context, and the commands by which that is decided.

One document for each context, in ``lease-items``. The server decides, by its own clock (``$$NOW``) and in one command
each, so that the clocks of the processes do not matter. What depends on the stored document is in the update, as the
filter of an upsert has to be the unique index and nothing else.
"""

from collections.abc import Collection as Ids
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from bson.binary import Binary
from bson.int64 import Int64
from pydantic import BeforeValidator
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure

from backtest_persist.connections import Document, MongoState, aggregate
from backtest_persist.core.keys import FrameName, Name
from backtest_persist.core.owner import Owner
from backtest_persist.core.row import Context, Row
from backtest_persist.core.schema import Schema
from backtest_persist.core.sessions import outdate
from backtest_persist.core.write_queue import by_unique_index
from backtest_persist.errors import InvalidKeyError
from backtest_persist.mode import Mode

__all__ = ("LEASES", "LEASE_ACTIONS", "FoundLease", "LeaseContext", "LeaseDocument", "LeaseRow")

LEASE_ACTIONS = ("find", "insert", "update", "listIndexes")
"""The actions on the collection that a least-privilege role has to allow; ``createIndex`` comes on top."""

_NOT_AVAILABLE = {13, 59, 8000}
"""Codes of servers that have no such command for this user: Unauthorized, CommandNotFound, and that of Atlas."""


def _checked_mode(value: Any) -> Mode:
    try:
        return Mode(value)
    except ValueError:
        names = ", ".join(mode.value for mode in Mode)
        raise InvalidKeyError(f"mode must be a Mode ({names}), not {value!r:.80}.") from None


class LeaseContext(Context):
    """The context that has one writer: a run of a strategy."""

    strategy_name: Name
    exchange_name: Name
    symbol: Name
    frame_name: FrameName
    mode: Annotated[Mode, BeforeValidator(_checked_mode)]

    def describe(self) -> str:
        """Return the context for a message."""
        return ", ".join(f"{name}={str(value)!r:.80}" for name, value in self.parts().items())


class LeaseRow(LeaseContext, Row):
    """The lease of a context."""

    epoch: int
    """The number of times that it was taken."""
    owner: Owner | None
    """The process that has taken it; None when it was given up."""
    since: datetime
    """When it was taken, by the clock of the server."""
    expiry: datetime
    """When it runs out unless it is renewed, by the clock of the server."""
    session_ids: tuple[UUID, ...] = ()
    """The sessions by which its holder may have a transaction open."""


LEASES: Schema[LeaseContext, LeaseRow] = Schema("lease-items", LeaseContext, LeaseRow, (), (("_id", 1),))
"""The collection of leases."""


class FoundLease(NamedTuple):
    """A lease as the server has found it."""

    row: LeaseRow
    seconds_left: float
    """The time until it runs out, by the clock of the server."""


class LeaseDocument:
    """Sends the commands on the lease of one context, for one owner, in one event loop."""

    def __init__(self, state: MongoState, context: LeaseContext, token: str, duration: float) -> None:
        self._state = state
        self._context = context
        self.token = token
        self._collection = LEASES.of(state)
        self._duration = duration
        self._renewing = _renewing(duration)
        # in the ms of the last renewal that changes nothing, and the server locks only what changes
        fences = {"$add": [{"$ifNull": ["$fences", Int64(0)]}, 1]}
        self._fencing: list[Document] = [{"$set": {**self._renewing[0]["$set"], "fences": fences}}]

    async def find(self, seconds: float | None = None) -> FoundLease | None:
        """Return the lease; None if it was never taken."""
        left = {"$subtract": ["$expiry", "$$NOW"]}
        pipeline: list[Document] = [{"$match": self._context.to_filter()}, {"$set": {"left": left}}]
        async with self._operation("find the lease", seconds):
            async for document in aggregate(self._collection, pipeline):
                return FoundLease(LEASES.row_type.from_document(document), document["left"] / 1000)
        return None

    def owns(self, row: LeaseRow, epoch: int) -> bool:
        """Whether it is this owner's; an epoch comes again if the document was removed."""
        return row.epoch == epoch and row.owner is not None and row.owner.token == self.token

    async def take(self, owner: Owner, gone: str | None, seconds: float) -> LeaseRow:
        """Take it for an owner if it is free, has run out, or belongs to the token `gone`; returns it as it then is.

        It is a `WriteOutcomeUnknownError` after so many seconds, as while a transaction locks the document. Taking it
        again is safe.
        """
        is_free: list[Document] = [
            {"$eq": [{"$type": "$_id"}, "missing"]},
            {"$eq": [{"$ifNull": ["$owner", None]}, None]},
            {"$lte": ["$expiry", "$$NOW"]},
        ]
        if gone is not None:
            is_free.append({"$eq": ["$owner.token", gone]})
        is_mine = {"$eq": ["$owner.token", self.token]}
        taken: Document = {
            "epoch": {"$add": [{"$ifNull": ["$epoch", Int64(0)]}, 1]},
            "owner": {"$literal": owner.model_dump(by_alias=True)},
            "since": "$$NOW",
            "expiry": _expiry(self._duration),
            "sessionIds": {"$ifNull": ["$sessionIds", []]},
            "createDate": {"$ifNull": ["$createDate", "$$NOW"]},
            "updatedDate": "$$NOW",
            "__v": {"$ifNull": ["$__v", 0]},
        }
        changed: Document = {"$cond": [{"$or": is_free}, {"$mergeObjects": ["$$ROOT", taken]}, "$$ROOT"]}
        update: list[Document] = [{"$replaceWith": {"$cond": [is_mine, "$$ROOT", changed]}}]
        find_one_and_update: Any = self._collection.find_one_and_update
        send = partial(
            find_one_and_update,
            self._context.to_filter(),
            update,
            upsert=True,
            return_document=ReturnDocument.AFTER,
            hint=LEASES.unique_index,
        )
        async with self._operation("take the lease", seconds, write=True):
            try:
                document = await by_unique_index(LEASES, self._state, send)
            except DuplicateKeyError:  # two first ones met in the server: by now the document exists
                document = await send()
        return LEASES.row_type.from_document(document)

    async def renew(self, epoch: int, seconds: float, lasting: float | None = None) -> bool:
        """Let it run for its whole duration again, or `lasting` s; returns whether it was still this owner's.

        What a longer renewal has given stays.
        """
        update = self._renewing if lasting is None else _renewing(lasting)
        async with self._operation("renew the lease", seconds, write=True):
            result = await self._collection.update_one(self._mine(epoch), update)
        return result.matched_count > 0

    async def fence(self, epoch: int, session: Any) -> bool:
        """Renew it inside of the transaction of a session; returns whether it was still this owner's.

        Without a deadline, and with the errors of the driver: both are those of the transaction.
        """
        result = await self._collection.update_one(self._mine(epoch), self._fencing, session=session)
        return result.matched_count > 0

    async def record(self, epoch: int, session_id: UUID, ended: Ids[UUID]) -> bool:
        """Add the session of its transactions, without those that have ended; returns whether it was this owner's.

        Nothing else is replaced, so that one of these that the network delays does no harm.
        """
        added = {"$setUnion": ["$sessionIds", [Binary.from_uuid(session_id)]]}
        sessions = {"$setDifference": [added, [Binary.from_uuid(id) for id in ended]]}
        update = [{"$set": {**self._renewing[0]["$set"], "sessionIds": sessions}}]
        async with self._operation("record the session of the transactions", write=True):
            result = await self._collection.update_one(self._mine(epoch), update)
        return result.matched_count > 0

    async def release(self, seconds: float | None = None, *, all_ended: bool = True) -> None:
        """Give it up if it is this owner's; the recorded sessions are forgotten if `all_ended`."""
        mine = {**self._context.to_filter(), "owner.token": self.token}
        fields: Document = {"owner": None, "expiry": "$$NOW", "updatedDate": "$$NOW"}
        if all_ended:
            fields["sessionIds"] = []
        async with self._operation("give up the lease", seconds, write=True):
            await self._collection.update_one(mine, [{"$set": fields}])

    async def kill(self, session_ids: Ids[UUID], seconds: float | None = None) -> None:
        """End the transactions of these sessions on the server, which then holds no locks for them.

        A server that does not let this user do so ends them by itself, after ``transactionLifetimeLimitSeconds``.
        """
        sessions = [{"id": Binary.from_uuid(id)} for id in session_ids]
        async with self._operation("end the open transaction", seconds, write=True):
            try:
                await self._state.database.command("killSessions", sessions)
            except OperationFailure as error:
                if error.code not in _NOT_AVAILABLE:
                    raise

    async def end_transactions(self, sessions: Mapping[UUID, Any], seconds: float | None = None) -> None:
        """End the transactions of sessions of this process, including those that have not arrived at the server yet."""
        seconds = self._state.seconds if seconds is None else seconds
        await self.kill(sessions, seconds / 2)
        async with self._operation("end the open transaction", seconds / 2, write=True):
            for session in sessions.values():
                await outdate(self._collection, session)

    def _mine(self, epoch: int) -> Document:
        """Return the filter that finds it as long as this owner has it."""
        return {**self._context.to_filter(), "epoch": epoch, "owner.token": self.token}

    def _operation(
        self, verb: str, seconds: float | None = None, *, write: bool = False
    ) -> AbstractAsyncContextManager[None]:
        return self._state.deadline(LEASES.operation(verb, self._context, write=write), seconds)


def _expiry(duration: float) -> Document:
    return {"$add": ["$$NOW", Int64(max(1, round(duration * 1000)))]}


def _renewing(duration: float) -> list[Document]:
    return [{"$set": {"expiry": {"$max": ["$expiry", _expiry(duration)]}, "updatedDate": "$$NOW"}}]
