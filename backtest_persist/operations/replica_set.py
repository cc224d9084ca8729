"""The replica set that a mongod has to be in, and how a fresh one gets into it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from backtest_persist.connections import Operation
from backtest_persist.container import Container
from backtest_persist.errors import StoreUnavailableError

__all__ = ("ReplicaSet", "initiate")

_ALREADY_INITIALIZED = 23
_NOT_YET_INITIALIZED = 94
_ELECTION_SECONDS = 30


@dataclass(frozen=True)
class ReplicaSet:
    """The report of `initiate`."""

    name: str
    members: tuple[str, ...]
    """The host and port of each member."""


async def initiate(container: Container, member: str, *, rename: bool = False) -> ReplicaSet:
    """Make the mongod of a container a replica set with `member`, a host and port, as its only member.

    A mongod that is in a replica set already is left as it is, so `member` can be missing in the report; with `rename`,
    the only member of such a set is named like this from now on. Returns when the replica set has a primary;
    `StoreUnavailableError` when it has none within 30 s.
    """
    admin = container.mongo_service.client.admin
    operation = Operation("initiating the replica set", write=True)
    with container.mongo_service.accept() as state, state.errors(operation):
        is_new = await _initiate(admin, member)
        try:
            async with asyncio.timeout(_ELECTION_SECONDS):
                if rename and not is_new:
                    await _rename(admin, member)
                while not (hello := await admin.command("hello"))["isWritablePrimary"]:  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StoreUnavailableError(
                f"The replica set has no primary after {_ELECTION_SECONDS} s; mongod has to be able to reach itself as "
                f"{member}."
            ) from None
    return ReplicaSet(hello["setName"], tuple(hello["hosts"]))


async def _initiate(admin: AsyncDatabase[dict[str, Any]], member: str) -> bool:
    """Initiate a replica set; returns False if the mongod is in one already."""
    try:
        await admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": member}]})
    except OperationFailure as error:
        if error.code != _ALREADY_INITIALIZED:
            raise
        return False
    return True


async def _rename(admin: AsyncDatabase[dict[str, Any]], member: str) -> None:
    """Name the only member of a replica set; it may have no primary, as that is not to be found under the old name."""
    config = await _configuration(admin)
    [*others, only] = config["members"]
    if not others and only["host"] != member:
        only["host"] = member
        config["version"] += 1
        await admin.command("replSetReconfig", config, force=True)


async def _configuration(admin: AsyncDatabase[dict[str, Any]]) -> dict[str, Any]:
    while True:
        try:
            return (await admin.command("replSetGetConfig"))["config"]
        except OperationFailure as error:
            if error.code != _NOT_YET_INITIALIZED:  # it has just started, and loads its configuration
                raise
        await asyncio.sleep(0.05)
