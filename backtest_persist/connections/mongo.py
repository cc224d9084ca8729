"""The MongoDB side of a container."""

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import Context
from datetime import UTC
from typing import Any, Protocol, Self, TypeVar, cast

import pymongo
from bson.codec_options import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from backtest_persist.connections.loops import Home, PerLoop, Watch, closed
from backtest_persist.connections.translation import Described, Operation, is_sessionless, mongo_errors
from backtest_persist.connections.values import CODEC_OPTIONS, Document
from backtest_persist.errors import (
    BacktestPersistError,
    ErrorReason,
    SettingsError,
    StoreUnavailableError,
)
from backtest_persist.logger import LoggerService
from backtest_persist.settings import DEFAULT_DATABASE, Settings

__all__ = ("Collection", "MongoService", "MongoState", "aggregate", "aggregate_raw", "list_indexes")


Collection = AsyncCollection[Document]


SELECTION_SECONDS = 0.5
"""How often PyMongo looks at its clock while it waits for a server."""
STEP_SECONDS = 0.05
MANY_CONNECTIONS = 100


class Drainable(Protocol):
    """Work that goes on by itself, and that closing waits for."""

    async def drain(self) -> None:
        """Wait until none is left."""
        ...

    async def settle(self) -> None:
        """Wait for what has begun, and let nothing that was sent have an effect later; an error if that fails."""
        ...

    async def end(self) -> None:
        """Begin nothing any more, and let nothing that was sent have an effect later, if possible."""
        ...


H = TypeVar("H", bound=Drainable)
T = TypeVar("T")


class _UnreadableError(Exception):
    pass


class _Unreadable(dict[str, Any]):
    def __init__(self) -> None:
        raise _UnreadableError


_UNREADABLE = CodecOptions[Any](document_class=_Unreadable)


class MongoState:
    """What one event loop holds of MongoDB."""

    def __init__(
        self, client: AsyncMongoClient[Document], database: AsyncDatabase[Document], seconds: float, *, owned: bool
    ) -> None:
        self.client = client
        self.database = database
        self.seconds = seconds
        self.prepared: set[str] = set()
        self._owned = owned
        self._watch = Watch(STEP_SECONDS)
        # PyMongo's pool does not bear it to be cancelled a second time while it ends a wait by itself (Python 3.11):
        # its lock is then never released. With Motor the thread goes on, and nobody hears of it.
        self.limit = self._watch.limit if isinstance(client, AsyncIOMotorClient) else None
        self._under_way = 0
        self._idle = asyncio.Event()
        self._collections: dict[str, Collection] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: dict[str, Drainable] = {}
        self._settling: dict[str, asyncio.Task[None]] = {}

    def collection(self, name: str) -> Collection:
        """The collection of that name."""
        collection = self._collections.get(name)
        if collection is None:
            collection = self._collections[name] = self.database.get_collection(name, codec_options=CODEC_OPTIONS)
        return collection

    def per_collection(self, name: str, create: "Callable[[MongoState], H]") -> H:
        """What is under way in a collection; made on first use, drained before the client is closed."""
        if name not in self._held:
            self._held[name] = create(self)
        return cast("H", self._held[name])

    def deadline(
        self,
        operation: Described,
        seconds: float | None = None,
        *,
        write: bool = False,
        cut: bool = True,
    ) -> AbstractAsyncContextManager[None]:
        """End what is asked of MongoDB after so many seconds, by default those of one operation.

        What goes wrong meanwhile becomes an error of ours, as by `mongo_errors`. Without `cut` the driver may be late.
        """
        seconds = self.seconds if seconds is None else seconds
        limit = self.limit(seconds) if cut and self.limit else nullcontext()
        return _Deadline(self.client, seconds, limit, mongo_errors(operation, write=write))

    @contextmanager
    def under_way(self) -> Generator[Self]:
        """Count as something that closing waits for."""
        self._under_way += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def drain(self) -> None:
        """Wait for what is under way, as long as one operation may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds + 2 * STEP_SECONDS):
                while self._under_way:
                    await self._idle.wait()
                for held in self._held.values():  # last, as what was under way may have sent something by them
                    await held.drain()

    async def end(self) -> None:
        """Let nothing that was sent have an effect later; bounded by one deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                with _timeout(self.client, self.seconds):
                    for held in self._held.values():
                        await held.end()

    async def start_session(self) -> Any:
        """Start a session of this client."""
        starting: Any = self.client.start_session(causal_consistency=False)
        return await starting if inspect.isawaitable(starting) else starting  # Motor's is a coroutine

    async def prepare(
        self,
        name: str,
        prepare: "Callable[[MongoState], Awaitable[None]]",
        *,
        patience: float | None = None,
        before: "Sequence[MongoState]" = (),
    ) -> None:
        """Let `prepare` succeed once for this collection, after all that was sent to it by the clients `before`.

        One that another caller has begun is waited for, as long as an operation may take, or `patience` in seconds;
        `prepare` may then take its own time.
        """
        until = time.monotonic() + (patience or self.seconds)
        lock = self._locks.setdefault(name, asyncio.Lock())
        with self.under_way():
            reason = "what was sent with other settings is still under way; try again"
            try:
                async with asyncio.timeout(patience or self.seconds):
                    for state in before:
                        await state._settled(name)
                    reason = "its indexes are still being created; await wait_for_init() first"
                    await lock.acquire()
            except (BacktestPersistError, TimeoutError) as error:
                raise StoreUnavailableError(
                    f"Nothing was asked of {name}: {reason}.",
                    collection=name,
                    server="MongoDB",
                    reason=ErrorReason.BUSY,
                ) from error
            try:
                if name not in self.prepared:
                    seconds = until - time.monotonic()
                    async with (
                        nullcontext() if patience else self.deadline(Operation("prepare the indexes", name), seconds)
                    ):
                        await prepare(self)
                    self.prepared.add(name)
            finally:
                lock.release()

    async def _settled(self, name: str) -> None:
        """`Drainable.settle` for this collection, shared by all who wait for it, and by nobody else."""
        if name in self._held:
            settling = self._settling.get(name)
            if settling is None or settling.done():
                settling = asyncio.create_task(self._held[name].settle(), context=Context())
                settling.add_done_callback(lambda task: task.cancelled() or task.exception())  # they may be gone
                self._settling[name] = settling
            await asyncio.shield(settling)

    async def by_session(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send what needs a session, leaving connections that take none.

        A connection that was opened while its server was just becoming the primary takes none for as long as it lives,
        and the driver, which keeps it, sends nothing by it.
        """
        for _ in range(MANY_CONNECTIONS):
            try:
                return await send()
            except (BacktestPersistError, PyMongoError) as error:
                if not is_sessionless(error):
                    raise
            # the driver closes a connection of which it fails to read the answer; the one just used is the next one
            with suppress(_UnreadableError, PyMongoError):
                await self.database.command("ping", codec_options=_UNREADABLE)
        return await send()

    async def close(self) -> None:
        """Close the client, if it was opened here, after what is under way; bounded by one more deadline."""
        until = time.monotonic() + self.seconds
        try:
            await self.drain()
            await self.end()
        finally:
            self._watch.close()
            if self._owned:
                left = max(until - time.monotonic(), STEP_SECONDS)
                with _timeout(self.client, left):  # the driver tells the server that its sessions end, and waits
                    if inspect.iscoroutinefunction(self.client.close):
                        await self.client.close()
                    else:  # Motor's blocks
                        await asyncio.to_thread(self.client.close)


def _timeout(client: AsyncMongoClient[Document], seconds: float) -> AbstractContextManager[None]:
    """The deadline of the driver: shorter while it knows of no server, as it then looks at its clock now and again."""
    if not client.topology_description.has_writable_server():
        seconds -= min(SELECTION_SECONDS, seconds / 2)
    return pymongo.timeout(max(seconds, 0.001))  # 0 would be no deadline


class _Deadline(AbstractAsyncContextManager[None]):
    """The deadline of the driver, which knows best what was wrong, and a limit for when that is late."""

    __slots__ = ("_cancelling", "_client", "_driver", "_errors", "_limit", "_seconds", "_task")

    def __init__(
        self,
        client: AsyncMongoClient[Document],
        seconds: float,
        limit: AbstractAsyncContextManager[None],
        errors: AbstractContextManager[None],
    ) -> None:
        self._client = client
        self._seconds = seconds
        self._limit = limit
        self._errors = errors

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._driver = _timeout(self._client, self._seconds)
        await self._limit.__aenter__()
        self._driver.__enter__()

    async def __aexit__(self, *raised: Any) -> None:
        self._driver.__exit__(*raised)
        error: BaseException | None = raised[1]
        try:
            await self._limit.__aexit__(*raised)
        except TimeoutError as late:
            error = late
        if self._task.cancelling() > self._cancelling and (error is None or isinstance(error, Exception)):
            # asyncio.wait_for, by which PyMongo waits, forgets it when the answer has just come (Python 3.11)
            for _ in range(2):  # turns of the loop, in which anyio repeats its own
                await asyncio.sleep(0)
            raise asyncio.CancelledError
        self._errors.__exit__(None if error is None else type(error), error, None)


class _Accepted(AbstractAsyncContextManager[None]):
    """A class, as a generator that is left open at the end of its event loop is closed at any moment."""

    __slots__ = ("_accept", "_deadline", "_operation", "_under_way", "_write")

    def __init__(
        self, accept: Callable[[], AbstractContextManager[MongoState]], operation: Described, write: bool
    ) -> None:
        self._accept = accept
        self._operation = operation
        self._write = write

    async def __aenter__(self) -> None:
        self._under_way = self._accept()
        self._deadline = self._under_way.__enter__().deadline(self._operation, write=self._write)
        await self._deadline.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._deadline.__aexit__(*raised)
        finally:
            self._under_way.__exit__(None, None, None)


class MongoService:
    """The MongoDB side of a container: one client per event loop, the database, and prepared collections."""

    def __init__(
        self, settings: Callable[[], Settings], logger: LoggerService, client: AsyncMongoClient[Document] | None = None
    ) -> None:
        self._settings = settings
        self._logger = logger
        self._injected = client
        self._home = Home("MongoDB")
        self._states = PerLoop(self._open, MongoState.close)

    def _open(self) -> MongoState:
        settings = self._settings()
        client = self._injected
        if client is None:
            client = _open_mongo(settings)
        else:
            self._home.check()
        concern: dict[str, Any] = dict(client.write_concern.document)
        if concern.get("w") == 0:
            raise SettingsError("w=0 tells nobody whether a write was stored; leave it out, or say w=1 or w=majority.")
        if "w" not in concern:
            concern["w"] = "majority"
        if concern["w"] == "majority":
            concern.pop("j", None)  # with a majority, j=false makes every write slower
        if client.read_preference != ReadPreference.PRIMARY:
            self._logger.warning(
                "mongo.read_preference", ignored=True, why="only the primary shows every acknowledged write"
            )
        database = client.get_default_database(
            DEFAULT_DATABASE,
            codec_options=CodecOptions[Document](tz_aware=True, tzinfo=UTC),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern(**concern),
        )
        seconds = client.options.timeout or settings.mongo_timeout_ms / 1000  # one in the URI wins
        return MongoState(client, database, seconds, owned=self._injected is None)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings()

    @property
    def client(self) -> AsyncMongoClient[Document]:
        """The client of the running event loop (Motor's or PyMongo's, by ``CC_MONGO_DRIVER``)."""
        return self._states.get().client

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The database of the running event loop: majority writes unless the URI says otherwise, primary reads."""
        return self._states.get().database

    def collection(self, name: str) -> Collection:
        """The collection of that name, for the running event loop."""
        return self._states.get().collection(name)

    @property
    def closed(self) -> bool:
        """Whether it was closed, and not opened again by other settings."""
        return self._states.closed

    @property
    def has_client(self) -> bool:
        """Whether the running event loop has a client; one that ends has closed it."""
        return self._states.held is not None

    @property
    def seconds(self) -> float:
        """The deadline of one operation."""
        return self._states.get().seconds

    def accept(self) -> AbstractContextManager[MongoState]:
        """Begin something that `close` waits for; refused after `close`."""
        return self._open_state().under_way()

    def operation(self, operation: Described, *, write: bool = False) -> AbstractAsyncContextManager[None]:
        """Begin one operation: `accept` with its deadline; errors name the operation."""
        return _Accepted(self.accept, operation, write)

    async def prepared(
        self, name: str, prepare: Callable[[MongoState], Awaitable[None]], *, patience: float | None = None
    ) -> MongoState:
        """What the running event loop holds, after `prepare` has succeeded once for this client and this collection.

        A failed preparation is tried again by the next call; for the rest see `MongoState.prepare`.
        """
        while name not in (state := self._open_state()).prepared:  # of settings that may be others meanwhile
            await state.prepare(name, prepare, patience=patience, before=self._states.retired)
        return state

    def _open_state(self) -> MongoState:
        if self._states.closed:
            raise closed()
        return self._states.get()

    async def ping(self) -> None:
        """Ask the server for a sign of life; `StoreUnavailableError` without one."""
        async with self.operation(Operation("Ping of MongoDB")):
            await self.database.command("ping")

    def reconfigure(self) -> None:
        """Take new settings from the next operation on."""
        self._states.retire()
        self._states.closed = False

    async def close(self) -> None:
        """Close the client of the running loop, if it was opened here; the service cannot be used any more.

        Operations under way are waited for, as long as one may take.
        """
        self._states.closed = True
        await asyncio.gather(*(state.drain() for state in self._states.all))  # which may be using one another
        await self._states.close()


def _open_mongo(settings: Settings) -> AsyncMongoClient[Document]:
    uri = settings.mongo_connection_string.get_secret_value()
    timeout = settings.mongo_timeout_ms
    options: dict[str, Any] = {
        "appName": "backtest-persist",
        "connectTimeoutMS": timeout,
        "maxPoolSize": settings.mongo_max_pool_size,
        "serverSelectionTimeoutMS": timeout,
        "timeoutMS": timeout,
        "tz_aware": True,
    }
    given = {option.partition("=")[0].lower() for option in re.split("[&;]", uri.partition("?")[2])}
    options = {name: value for name, value in options.items() if name.lower() not in given}
    try:
        if settings.mongo_driver == "pymongo":
            client = AsyncMongoClient[Document](uri, **options)
        else:
            client = cast("AsyncMongoClient[Document]", AsyncIOMotorClient(uri, **options))
        client.get_default_database(DEFAULT_DATABASE)
    except Exception as error:
        file = f"; it names a file that cannot be read: {error.strerror}" if isinstance(error, OSError) else ""
        problem = f"{type(error).__name__}{file}"
    else:
        return client
    raise SettingsError(  # out here without a context: the driver's message can quote the URI, and with it a password
        f"CC_MONGO_CONNECTION_STRING is not usable ({problem}); write mongodb://host/database, "
        "names and passwords percent-encoded."
    )


async def aggregate(collection: Collection, pipeline: Sequence[Mapping[str, Any]]) -> AsyncIterator[Document]:
    """Run an aggregation on either driver: Motor returns the cursor, PyMongo a coroutine of it."""
    cursor: Any = collection.aggregate(pipeline, allowDiskUse=True)
    if inspect.isawaitable(cursor):
        cursor = await cursor
    async for document in cursor:
        yield document


async def aggregate_raw(collection: Collection, pipeline: Sequence[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """Run an aggregation on either driver, and get batches of documents as they come from the server."""
    cursor: Any = collection.aggregate_raw_batches(pipeline, batchSize=100_000)
    if inspect.isawaitable(cursor):
        cursor = await cursor
    async for batch in cursor:
        yield batch


async def list_indexes(collection: Collection) -> list[Document]:
    """List the indexes of a collection on either driver; empty when the collection does not exist."""
    cursor: Any = collection.list_indexes()
    if inspect.isawaitable(cursor):
        cursor = await cursor
    return [dict(index) async for index in cursor]
