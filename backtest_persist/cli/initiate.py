"""``backtest-persist initiate``: makes a fresh mongod a replica set of one."""

import asyncio

from pymongo.errors import OperationFailure
from rich.console import Console

from backtest_persist.connections import mongo_errors
from backtest_persist.container import Container
from backtest_persist.errors import StoreUnavailableError

__all__ = ("initiate",)

_ALREADY_INITIALIZED = 23
_ELECTION_SECONDS = 30


async def initiate(*, member: str = "localhost:27017") -> int:
    """Make the mongod of the CC_* settings a replica set of one member, if it is not in a replica set yet.

    Majority writes that survive a crash, sessions and retryable writes need a replica set. Start mongod with
    --replSet rs0 and let the connection string say directConnection=true.

    Parameters
    ----------
    member
        The host and port under which clients find this server.

    """
    container = Container()
    try:
        admin = container.mongo_service.client.admin
        with mongo_errors("Initiating the replica set", write=True):
            try:
                members = [{"_id": 0, "host": member}]
                await admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            except OperationFailure as error:
                if error.code != _ALREADY_INITIALIZED:
                    raise
            try:
                async with asyncio.timeout(_ELECTION_SECONDS):
                    while not (hello := await admin.command("hello"))["isWritablePrimary"]:  # noqa: ASYNC110  # no event
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise StoreUnavailableError(
                    f"No primary after {_ELECTION_SECONDS} s: mongod has to reach itself as {member}."
                ) from None
        there = f"The replica set {hello['setName']} is ready; its member is {', '.join(hello['hosts'])}."
        Console().print(
            there if member in hello["hosts"] else f"{there} It was initiated before; {member} is not in it."
        )
        return 0
    finally:
        await container.close()
