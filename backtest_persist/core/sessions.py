"""Sessions: how nothing that a session has sent has an effect later."""

from contextlib import suppress
from typing import Any

from bson import ObjectId
from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from backtest_persist.connections import Collection

__all__ = ("change_nothing", "outdate")


async def change_nothing(collection: Collection, session: Any) -> None:
    """Send a write that changes nothing: from then on the server refuses what the session has sent before.

    The server numbers writes and transactions alike, and a higher number also aborts the transaction that is open.
    """
    collection = collection.with_options(write_concern=WriteConcern(w=1))  # the primary is the one to refuse
    await collection.update_one({"_id": ObjectId()}, {"$set": {"__v": 0}}, session=session)


async def outdate(collection: Collection, session: Any) -> None:
    """Let the server refuse a transaction of a session that is over, in whatever state, also one that arrives later.

    Killing the session is not enough: a first statement that the network has held up opens a transaction then, which
    nobody ends.
    """
    with suppress(PyMongoError):  # there is none, or it was sent to be committed
        await session.abort_transaction()
    await change_nothing(collection, session)
