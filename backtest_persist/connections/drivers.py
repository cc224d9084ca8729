"""Drivers: Motor and PyMongo's own asynchronous API behind one protocol; no other module tells them apart.

They differ in what is a coroutine, in how they close, and in whether they bear to be cancelled by a timer. Deadlines
(`pymongo.timeout`), cursors once they are open, sessions once they are started, and all other commands are the same.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection

from backtest_persist.connections.values import Document
from backtest_persist.connections.workarounds import PYMONGO_SURVIVES_A_TIMER, keep_closed

__all__ = (
    "MOTOR",
    "PYMONGO",
    "Client",
    "Collection",
    "Driver",
    "aggregate",
    "aggregate_raw",
    "driver_of",
    "is_client",
    "list_indexes",
    "open_client",
)

Client = AsyncMongoClient[Document]
"""A client of either driver."""
Collection = AsyncCollection[Document]
"""A collection of either driver."""
Pipeline = Sequence[Mapping[str, Any]]


class Driver(Protocol):
    """The calls in which the drivers differ."""

    @property
    def bears_timers(self) -> bool:
        """Whether a timer may cancel what awaits the driver."""
        ...

    def open(self, uri: str, options: Mapping[str, Any]) -> Client:
        """Return a client, which does not connect yet."""
        ...

    async def close(self, client: Client) -> None:
        """Close a client; the event loop goes on meanwhile."""
        ...

    async def start_session(self, client: Client) -> Any:
        """Start an explicit session that is not causally consistent."""
        ...

    async def start_transaction(self, session: Any, write_concern: WriteConcern) -> None:
        """Start a transaction of a session, which reads from the primary."""
        ...

    async def aggregate(self, collection: Collection, pipeline: Pipeline) -> AsyncIterator[Document]:
        """Return the cursor of an aggregation, which may use the disk of the server."""
        ...

    async def aggregate_raw(self, collection: Collection, pipeline: Pipeline, batch_size: int) -> AsyncIterator[bytes]:
        """Return the cursor of an aggregation that gives batches of documents as they come from the server."""
        ...

    async def list_indexes(self, collection: Collection) -> AsyncIterator[Document]:
        """Return the cursor over the indexes of a collection."""
        ...


class _Motor:
    """Motor: PyMongo in threads, which go on when a caller is cancelled."""

    bears_timers = True

    def open(self, uri: str, options: Mapping[str, Any]) -> Client:
        return cast("Client", AsyncIOMotorClient(uri, **options))

    async def close(self, client: Client) -> None:
        keep_closed(client.delegate)
        await asyncio.to_thread(cast("Any", client).close)  # which blocks

    async def start_session(self, client: Client) -> Any:
        return await cast("Any", client).start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, write_concern: WriteConcern) -> None:
        session.start_transaction(write_concern=write_concern, read_preference=ReadPreference.PRIMARY)

    async def aggregate(self, collection: Collection, pipeline: Pipeline) -> AsyncIterator[Document]:
        return cast("Any", collection).aggregate(pipeline, allowDiskUse=True)

    async def aggregate_raw(self, collection: Collection, pipeline: Pipeline, batch_size: int) -> AsyncIterator[bytes]:
        return cast("Any", collection).aggregate_raw_batches(pipeline, batchSize=batch_size)

    async def list_indexes(self, collection: Collection) -> AsyncIterator[Document]:
        return cast("Any", collection).list_indexes()


class _PyMongo:
    """PyMongo's own asynchronous API."""

    bears_timers = PYMONGO_SURVIVES_A_TIMER

    def open(self, uri: str, options: Mapping[str, Any]) -> Client:
        return AsyncMongoClient[Document](uri, **options)

    async def close(self, client: Client) -> None:
        keep_closed(client)
        await client.close()

    async def start_session(self, client: Client) -> Any:
        return client.start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, write_concern: WriteConcern) -> None:
        await session.start_transaction(write_concern=write_concern, read_preference=ReadPreference.PRIMARY)

    async def aggregate(self, collection: Collection, pipeline: Pipeline) -> AsyncIterator[Document]:
        return await collection.aggregate(pipeline, allowDiskUse=True)

    async def aggregate_raw(self, collection: Collection, pipeline: Pipeline, batch_size: int) -> AsyncIterator[bytes]:
        return await cast("Any", collection).aggregate_raw_batches(pipeline, batchSize=batch_size)

    async def list_indexes(self, collection: Collection) -> AsyncIterator[Document]:
        return cast("Any", await collection.list_indexes())


MOTOR: Driver = _Motor()
PYMONGO: Driver = _PyMongo()


def driver_of(thing: Client | Collection) -> Driver:
    """Return the driver that a client or a collection is of."""
    return MOTOR if isinstance(thing, AsyncIOMotorClient | AsyncIOMotorCollection) else PYMONGO


def is_client(thing: object) -> bool:
    """Whether it is a client of one of the drivers."""
    return isinstance(thing, AsyncIOMotorClient | AsyncMongoClient)


def open_client(name: Literal["motor", "pymongo"], uri: str, options: Mapping[str, Any]) -> Client:
    """Return a client of the driver of that name (``CC_MONGO_DRIVER``), which does not connect yet."""
    return (PYMONGO if name == "pymongo" else MOTOR).open(uri, options)


async def aggregate(collection: Collection, pipeline: Pipeline) -> AsyncIterator[Document]:
    """Run an aggregation on either driver and iterate over its documents."""
    async for document in await driver_of(collection).aggregate(collection, pipeline):
        yield document


async def aggregate_raw(collection: Collection, pipeline: Pipeline) -> AsyncIterator[bytes]:
    """Run an aggregation on either driver and iterate over batches of documents as they come from the server."""
    async for batch in await driver_of(collection).aggregate_raw(collection, pipeline, batch_size=100_000):
        yield batch


async def list_indexes(collection: Collection) -> list[Document]:
    """List the indexes of a collection on either driver; empty when the collection does not exist."""
    return [dict(index) async for index in await driver_of(collection).list_indexes(collection)]
