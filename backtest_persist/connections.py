"""Connections to MongoDB and Redis: where containers open clients, and the one place that translates driver errors.

Clients of both databases belong to one event loop. Each service therefore keeps one client per running loop and
closes it when that loop shuts down, so one process-wide container serves a notebook, pytest and any number of
`asyncio.run` calls.
"""

import asyncio
import inspect
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast
from weakref import WeakSet

import pymongo
from anyio import CancelScope
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.errors import BSONError
from bson.int64 import Int64
from bson.objectid import ObjectId
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, RedisError, ResponseError

from backtest_persist.errors import (
    BacktestPersistError,
    ClosedError,
    InvalidKeyError,
    InvalidPayloadError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.logger import LoggerService
from backtest_persist.settings import DEFAULT_DATABASE, Settings

__all__ = (
    "Collection",
    "Document",
    "MongoService",
    "MongoState",
    "RedisCommands",
    "RedisService",
    "aggregate",
    "aggregate_raw",
    "list_indexes",
    "mongo_errors",
    "redis_errors",
    "to_plain",
    "uncancelled",
)

T = TypeVar("T")

Document = dict[str, Any]
Collection = AsyncCollection[Document]


class PerLoop(Generic[T]):
    """Holds one value per running event loop and closes it together with that loop.

    The end of a loop is noticed through an asynchronous generator that is left suspended in it:
    `asyncio.run`, pytest-asyncio and every other runner that calls ``loop.shutdown_asyncgens()`` closes it.

    A process that was forked opens its own: by the sockets and the sessions of its parent it would take the answers
    that are for its parent, and its writes would count as repetitions of its parent's. It needs a loop of its own as
    well; both would be woken by the same file.
    """

    _all: ClassVar["WeakSet[PerLoop[Any]]"] = WeakSet()

    def __init__(self, create: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._create = create
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}
        self._retired: list[tuple[asyncio.AbstractEventLoop, AsyncGenerator[None]]] = []
        self._inherited: list[tuple[asyncio.AbstractEventLoop, object]] = []
        self.closed = False
        PerLoop._all.add(self)

    @staticmethod
    def disinherit() -> None:
        """Leave to the parent of this process what it has open; kept, as collecting it would close it."""
        for per_loop in PerLoop._all:
            per_loop._inherited += [*per_loop._held.items(), *per_loop._retired]
            per_loop._held, per_loop._retired = {}, []

    def get(self) -> T:
        """Return the value of the running loop, creating it on first use."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is not None:
            return held[0]
        if self.closed:
            raise _closed()
        if any(loop is inherited for inherited, _ in self._inherited):
            raise SettingsError("This event loop belongs to the process that was forked; call asyncio.run in this one.")
        self._held = {other: value for other, value in self._held.items() if not other.is_closed()}
        value = self._create()
        guard = self._guard(loop, value)
        with suppress(StopIteration):  # runs to the yield: there is no suspension before it
            guard.__anext__().send(None)
        self._held[loop] = value, guard
        return value

    async def _guard(self, loop: asyncio.AbstractEventLoop, value: T) -> AsyncGenerator[None]:
        owner = os.getpid()
        try:
            yield
        finally:
            held = self._held.get(loop)
            if held is not None and held[0] is value:
                del self._held[loop]
            if os.getpid() == owner:
                await self._close(value)

    def retire(self) -> None:
        """Forget every value; each is closed with its loop, or by the next `close` in it."""
        open_ones = [*self._retired, *((loop, guard) for loop, (_, guard) in self._held.items())]
        self._retired = [(loop, guard) for loop, guard in open_ones if not loop.is_closed()]
        self._held = {}

    @property
    def held(self) -> T | None:
        """The value of the running loop, if there is one."""
        held = self._held.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    async def close(self) -> None:
        """Close what belongs to the running loop."""
        loop = asyncio.get_running_loop()
        guards = [guard for owner, guard in self._retired if owner is loop]
        self._retired = [(owner, guard) for owner, guard in self._retired if owner is not loop]
        held = self._held.get(loop)
        if held is not None:
            guards.append(held[1])
        for guard in guards:
            await guard.aclose()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PerLoop.disinherit)


async def uncancelled(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, however often the caller is cancelled meanwhile, and cancel it afterwards."""
    task = asyncio.create_task(work())
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def _closed() -> ClosedError:
    return ClosedError("This container was closed; open another one with Container(...) or setup().")


class _Home:
    """The event loop of an injected client: the one in which it is used first."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is not running:
            raise SettingsError(
                f"The {self._server} client given to this container belongs to the event loop of its first use. Give "
                "another loop a container with a client of its own, or give none: then each loop gets one."
            )


# --- MongoDB ---------------------------------------------------------------------------------------------------------


class _Decoded(dict[str, Any]):
    """A document as the driver decodes it; `to_plain` makes dicts of it.

    It denies that it has ``$ref``: of a payload with the keys of a reference PyMongo would make a `DBRef`, which
    forgets their order and a ``$db`` of None.
    """

    def __getitem__(self, key: str) -> Any:
        if key == "$ref":
            raise KeyError(key)
        return super().__getitem__(key)


# No type_registry: with one PyMongo cannot retry a write whose reply has a writeConcernError (helpers_shared calls
# `update` on a RawBSONDocument).
CODEC_OPTIONS: CodecOptions[Document] = CodecOptions(
    document_class=_Decoded, tz_aware=True, tzinfo=UTC, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)

_PLAIN_TYPES = frozenset({bool, bytes, datetime, float, int, str, ObjectId, type(None)})


def to_plain(value: Any) -> Any:
    """Return a decoded value as plain data: dict, list, int, Decimal.

    A date beyond the years of `datetime` becomes an int in ms since the epoch.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, dict):
        document = cast("Document", value)
        return {key: item if type(item) in _PLAIN_TYPES else to_plain(item) for key, item in document.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Int64 | DatetimeMS):
        return int(value)
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, DBRef):  # the deprecated BSON type of a pointer
        return to_plain(value.as_doc())
    return value


class Drainable(Protocol):
    """Work that goes on by itself, and that closing waits for."""

    async def drain(self) -> None:
        """Wait until none is left."""
        ...


H = TypeVar("H", bound=Drainable)


class MongoState:
    """What one event loop holds of MongoDB."""

    def __init__(
        self, client: AsyncMongoClient[Document], database: AsyncDatabase[Document], seconds: float, *, owned: bool
    ) -> None:
        self.client = client
        self.database = database
        self.seconds = seconds
        self.prepared: set[str] = set()
        self.locks: dict[str, asyncio.Lock] = {}
        self._owned = owned
        self._under_way = 0
        self._idle = asyncio.Event()
        self._collections: dict[str, Collection] = {}
        self._held: dict[object, Drainable] = {}

    def collection(self, name: str) -> Collection:
        """The collection of that name."""
        collection = self._collections.get(name)
        if collection is None:
            collection = self._collections[name] = self.database.get_collection(name, codec_options=CODEC_OPTIONS)
        return collection

    def held(self, owner: object, create: "Callable[[MongoState], H]") -> H:
        """What `owner` keeps here; made on first use, drained before the client is closed."""
        if owner not in self._held:
            self._held[owner] = create(self)
        return cast("H", self._held[owner])

    def deadline(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """End what is asked of MongoDB after so many seconds, by default those of one operation."""
        return pymongo.timeout(self.seconds if seconds is None else max(seconds, 0.001))  # 0 would be no deadline

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
            async with asyncio.timeout(self.seconds):
                while self._under_way:
                    await self._idle.wait()
                for held in self._held.values():  # last, as what was under way may have sent something by them
                    await held.drain()

    async def close(self) -> None:
        """Close the client, if it was opened here, after what is under way; bounded by one more deadline."""
        await self.drain()
        if self._owned:
            with self.deadline():  # the driver tells the server that its sessions end, and waits for the answer
                if inspect.iscoroutinefunction(self.client.close):
                    await self.client.close()
                else:  # Motor's blocks
                    await asyncio.to_thread(self.client.close)


class MongoService:
    """The MongoDB side of a container: one client per event loop, the database, and prepared collections."""

    def __init__(
        self, settings: Callable[[], Settings], logger: LoggerService, client: AsyncMongoClient[Document] | None = None
    ) -> None:
        self._settings = settings
        self._logger = logger
        self._injected = client
        self._home = _Home("MongoDB")
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
    def seconds(self) -> float:
        """The deadline of one operation."""
        return self._states.get().seconds

    def accept(self) -> AbstractContextManager[MongoState]:
        """Begin something that `close` waits for; refused after `close`."""
        return self._open_state().under_way()

    @contextmanager
    def operation(self) -> Generator[None]:
        """Begin one operation: `accept` with its deadline."""
        with self.accept() as state, state.deadline():
            yield

    async def prepared(
        self, name: str, prepare: Callable[[Collection], Awaitable[None]], *, patience: float | None = None
    ) -> MongoState:
        """What the running event loop holds, after `prepare` has succeeded once for this client and this collection.

        A failed preparation is tried again by the next call. One that another caller has begun is waited for, as
        long as an operation may take, or `patience` in seconds; `prepare` may then take its own time.
        """
        state = self._open_state()
        if name in state.prepared:
            return state
        until = time.monotonic() + (patience or state.seconds)
        lock = state.locks.setdefault(name, asyncio.Lock())
        with state.under_way():
            try:
                async with asyncio.timeout(patience or state.seconds):
                    await lock.acquire()
            except TimeoutError:
                raise StoreUnavailableError(
                    f"The indexes of {name} are still being created; await wait_for_init() first."
                ) from None
            try:
                if name not in state.prepared:
                    with nullcontext() if patience else state.deadline(until - time.monotonic()):
                        await prepare(state.collection(name))
                    state.prepared.add(name)
            finally:
                lock.release()
        return state

    def _open_state(self) -> MongoState:
        if self._states.closed:
            raise _closed()
        return self._states.get()

    async def ping(self) -> None:
        """Ask the server for a sign of life; `StoreUnavailableError` without one."""
        with self.operation(), mongo_errors("Ping of MongoDB"):
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
        state = self._states.held
        if state is not None:
            await state.drain()  # here, for a second caller meanwhile
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


def mongo_errors(operation: str | Callable[[], str], *, write: bool = False) -> AbstractContextManager[None]:
    """Turn driver errors into ours; `operation` opens the message and names domain and context."""
    return _MongoErrors(operation, write)


class _MongoErrors(AbstractContextManager[None]):
    """A class, as this stands around every command: a generator would cost several times as much."""

    __slots__ = ("_operation", "_write")

    def __init__(self, operation: str | Callable[[], str], write: bool) -> None:
        self._operation = operation
        self._write = write

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, BacktestPersistError):
            return
        operation = self._operation if isinstance(self._operation, str) else self._operation()
        # the driver has bugs, too; a write that met one may have been applied
        raise _translate(error, operation, write=self._write) from (None if _quotes_data(error) else error)


# BadValue, FailedToParse, TypeMismatch and their like; without a name (51091) an error is of the query's parser as well
_BAD_QUERY_CODES = {2, 9, 14, 15, 16, 17, 22, 27, 28, 52, 53, 55, 56, 57, 72, 73, 115, 139, 168, 224, 241, 303}
_STATE_CODES = {10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436}


def _quotes_data(error: Exception) -> bool:
    return not isinstance(error, PyMongoError) or isinstance(
        error, OperationFailure | DocumentTooLarge | ConfigurationError
    )


def _translate(error: Exception, operation: str, *, write: bool) -> BacktestPersistError:
    if isinstance(error, BSONError | DocumentTooLarge | OverflowError):
        return InvalidPayloadError(f"{operation}: MongoDB cannot store this value ({type(error).__name__}).")
    if isinstance(error, InvalidOperation) and not write:
        return ClosedError(f"{operation}: the client was closed; open another container.")
    if isinstance(error, ConfigurationError | InvalidURI):
        return SettingsError(f"{operation}: the connection string does not fit ({type(error).__name__}).")
    what = _describe(error)
    if not write and isinstance(error, OperationFailure) and _is_bad_query(error.code or 0):
        reason = str((error.details or {}).get("errmsg", "")).partition("\n")[0][:200]
        return InvalidKeyError(f"{operation}: {what}; MongoDB does not understand the filter or the sort: {reason}")
    if not write and isinstance(error, TypeError | ValueError):
        return InvalidKeyError(f"{operation}: the driver cannot send this filter or sort ({type(error).__name__}).")
    if not write or isinstance(error, ServerSelectionTimeoutError):
        return StoreUnavailableError(f"{operation}: {what}. Nothing was applied; check the server and try again.")
    if isinstance(error, BulkWriteError):
        details: Mapping[str, Any] = error.details or {}
        if not details.get("writeErrors"):
            return WriteOutcomeUnknownError(f"{operation}: the write concern was not met; read to see what is stored.")
        codes = sorted({int(failed.get("code", 0)) for failed in details["writeErrors"]})
        return WriteRejectedError(
            f"{operation}: {len(details['writeErrors'])} of the writes were refused (codes {codes}); "
            "the others are stored, and writing them again is safe."
        )
    if (
        isinstance(error, OperationFailure)
        and not isinstance(error, WriteConcernError)
        and not (error.timeout or error.has_error_label("RetryableWriteError"))
    ):
        return WriteRejectedError(f"{operation}: {what}. The stored value is unchanged.")
    return WriteOutcomeUnknownError(f"{operation}: {what}. It may have been applied; the next read tells.")


def _is_bad_query(code: int) -> bool:
    return code in _BAD_QUERY_CODES or (code > 10_000 and code not in _STATE_CODES)


def _describe(error: Exception) -> str:
    if isinstance(error, OperationFailure):
        name = (error.details or {}).get("codeName", type(error).__name__)
        hint = {13: "; grant the user readWrite on this database", 18: "; check user and password"}
        return f"the server answered {name} (code {error.code}{hint.get(error.code or 0, '')})"
    if _quotes_data(error):
        return f"the driver failed with {type(error).__name__}"
    return _first_line(error)


_ADVICE = {
    r"CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)": "connect under a name that is in its certificate",
    r"CERTIFICATE_VERIFY_FAILED": "name the CA that signed its certificate (tlsCAFile=, ssl_ca_certs= for Redis)",
    r"Authentication failed": "check user and password",
    r"[Cc]onnection closed": "a server that wants TLS needs tls=true in the URI, rediss:// for Redis",
}


def _first_line(error: Exception) -> str:
    """What the driver says, shortened, and what to do about TLS and passwords."""
    line = next(iter(str(error).splitlines()), "").partition(", full error: ")[0][:200]
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, line)), None)
    return f"{type(error).__name__}: {line.rstrip('.')}" + (f"; {advice}" if advice else "")


# --- Redis -----------------------------------------------------------------------------------------------------------


class RedisCommands(Protocol):
    """What a command is sent with; answers are as the server gives them: bytes, int, lists of them."""

    async def execute(self, *command: str | bytes | int) -> Any:
        """Send a command and return its answer."""
        ...

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        """Send commands in one round trip."""
        ...


class _Client:
    """Commands by a client that was given to the container."""

    def __init__(self, client: Redis) -> None:
        self._client = cast("Any", client)

    async def execute(self, *command: str | bytes | int) -> Any:
        return await self._client.execute_command(*command)

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        await pipeline.execute()


class _Connection:
    """Commands by a connection of our own: half the work of a client, whose pool and retries we do not need."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._connection: Any = pool.make_connection()  # which connects with the first command

    async def execute(self, *command: str | bytes | int) -> Any:
        await self._reconnect()
        await self._connection.send_command(*command)
        return await self._connection.read_response()

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        await self._reconnect()
        await self._connection.send_packed_command(self._connection.pack_commands(commands))
        refused: ResponseError | None = None
        for _ in commands:
            try:
                await self._connection.read_response()
            except ResponseError as error:  # the other answers are still to come
                refused = error
        if refused is not None:
            raise refused

    async def _reconnect(self) -> None:
        """Leave a connection that the server has closed meanwhile."""
        if self._connection.is_connected and await self._connection.can_read():
            await self._connection.disconnect(nowait=True)

    async def close(self) -> None:
        await self._connection.disconnect()


class _RedisState:
    """What one event loop holds of Redis: a client for the user, and what our commands are sent with."""

    def __init__(self, settings: Settings, injected: Redis | None) -> None:
        self.client = injected or Redis.from_pool(_open_pool(settings, BlockingConnectionPool))
        self.owned = injected is None
        self.connections = settings.redis_max_connections
        self.free = asyncio.Semaphore(self.connections)
        self._pool = _open_pool(settings, ConnectionPool) if injected is None else None
        self._idle: list[_Connection] = []
        self._step = settings.redis_timeout_ms / 1000 / STEPS
        self._under_way: set[_Command] = set()
        self._watch: asyncio.TimerHandle | None = None

    def begin(self, command: "_Command") -> RedisCommands:
        self._under_way.add(command)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._step, self._pass)
        if self._pool is None:
            return _Client(self.client)
        return self._idle.pop() if self._idle else _Connection(self._pool)

    def end(self, command: "_Command", commands: RedisCommands) -> None:
        self._under_way.discard(command)
        self.free.release()
        if isinstance(commands, _Connection):
            self._idle.append(commands)

    def _pass(self) -> None:
        for command in self._under_way:
            command.wait()
        again = bool(self._under_way)
        self._watch = asyncio.get_running_loop().call_later(self._step, self._pass) if again else None

    async def close(self) -> None:
        if self.owned:
            for _ in range(self.connections):  # each command under way ends within its deadline
                await self.free.acquire()
            for connection in self._idle:
                await connection.close()
            await self.client.aclose()
            for _ in range(self.connections):  # for those that wait: they find the service closed
                self.free.release()
        if self._watch is not None:
            self._watch.cancel()


class RedisService:
    """The Redis side of a container: one client per event loop, and the decision whether to ask Redis at all.

    Redis holds nothing that MongoDB does not know, so for a db service any Redis fault is a cache miss. After a
    command without an answer, or `FAILURES_UNTIL_OPEN` other failures in a row, the circuit breaker opens: Redis is
    skipped, then probed by one caller after a pause that doubles from `FIRST_PAUSE_SECONDS` to
    `LONGEST_PAUSE_SECONDS`. A Redis that answers with an error is asked again; it costs no time.
    """

    FAILURES_UNTIL_OPEN = 3
    FIRST_PAUSE_SECONDS = 0.5
    LONGEST_PAUSE_SECONDS = 4.0

    def __init__(self, settings: Callable[[], Settings], logger: LoggerService, client: Redis | None = None) -> None:
        self._settings = settings
        self._logger = logger
        if client is not None and client.get_encoder().decode_responses:
            raise SettingsError("The redis_client must return bytes; open it without decode_responses=True.")
        self._injected = client
        self._home = _Home("Redis")
        self._states = PerLoop(self._open, _RedisState.close)
        self._refused: set[str] = set()
        self._failures = 0
        self._failed_at = 0.0
        self._pause = self.FIRST_PAUSE_SECONDS
        self._skip_until = 0.0

    def _open(self) -> _RedisState:
        settings = self._settings()
        if self._injected is not None:
            try:
                self._home.check()
            except SettingsError as error:  # for the db services a miss
                raise StoreUnavailableError(str(error)) from error
        return _RedisState(settings, self._injected)

    @property
    def client(self) -> Redis:
        """The client of the running event loop; answers are bytes."""
        return self._states.get().client

    @property
    def key_prefix(self) -> str:
        """What stands before every key (``CC_REDIS_KEY_PREFIX``)."""
        return self._settings().redis_key_prefix

    def command(self, operation: str) -> AbstractAsyncContextManager[RedisCommands]:
        """Bound one command by ``CC_REDIS_TIMEOUT_MS``, from when one of our connections is free for it.

        Any fault is a `StoreUnavailableError`; `operation` opens its message.
        """
        return _Command(self._states.get(), operation, self._check)

    def _check(self, operation: str, asked: float) -> None:
        if self._states.closed:
            raise _closed()
        if self._is_open and self._failed_at > asked:
            raise StoreUnavailableError(f"{operation}: Redis stopped answering while others were waiting for it.")

    async def ping(self) -> None:
        """Ask the server for a sign of life; `StoreUnavailableError` without one."""
        async with self.command("Ping of Redis") as redis:
            await redis.execute("PING")

    async def attempt(self, kind: str, call: Callable[[], Awaitable[T]], default: T) -> T:
        """Await `call()` if Redis is thought to be up; any fault gives `default`. Reports are made for each `kind`."""
        started = time.monotonic()
        if self._is_open:
            if started < self._skip_until:
                return default
            self._skip_until = started + self._pause  # this caller probes, the others go on without
        try:
            result = await call()
        except ClosedError:
            return default
        except StoreUnavailableError as error:
            if not _is_answer(error.__cause__):
                self._failed(error, started)
            elif kind not in self._refused:
                self._refused.add(kind)
                self._logger.warning("redis.refuses", command=kind, why=error)
            return default
        if self._is_open or kind in self._refused:
            self._logger.info("redis.back", command=kind)
            self._refused.discard(kind)
        self._failures = 0
        self._pause = self.FIRST_PAUSE_SECONDS
        return result

    @property
    def _is_open(self) -> bool:
        return self._failures >= self.FAILURES_UNTIL_OPEN

    def _failed(self, error: Exception, started: float) -> None:
        if started < self._failed_at:
            return  # concurrent failures are one
        was_open, self._failed_at = self._is_open, time.monotonic()
        silent = isinstance(error.__cause__, TimeoutError)
        self._failures = self.FAILURES_UNTIL_OPEN if silent else self._failures + 1
        if self._is_open:
            if not was_open:
                self._logger.warning("redis.down", why=error, now="MongoDB alone")
            self._skip_until = self._failed_at + self._pause
            self._pause = min(self._pause * 2, self.LONGEST_PAUSE_SECONDS)

    def reconfigure(self) -> None:
        """Take new settings from the next operation on."""
        self._states.retire()
        self._states.closed = False
        self._failures = 0

    async def close(self) -> None:
        """Close the client of the running loop, if it was opened here; the service cannot be used any more."""
        self._states.closed = True
        await self._states.close()


_ANSWERS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError, SettingsError)


def _is_answer(error: BaseException | None) -> bool:
    """Whether an error is what the server said, in the middle of connecting too, or what we know; not its silence."""
    return error is not None and (isinstance(error, _ANSWERS) or _is_answer(error.__cause__))


STEPS = 5


class _Command(AbstractAsyncContextManager[RedisCommands]):
    """Holds one of our connections, and raises after a time in which the event loop was free to see an answer.

    The time is counted in steps: while the loop is busy with something else, however long, at most one passes. One
    timer counts for all commands; one of their own would cost as much as the command.
    """

    __slots__ = ("_asked", "_check", "_commands", "_left", "_limit", "_operation", "_state")

    def __init__(self, state: _RedisState, operation: str, check: Callable[[str, float], None]) -> None:
        self._state = state
        self._operation = operation
        self._check = check
        self._asked = time.monotonic()
        self._left = STEPS + 1  # the first may be short
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> RedisCommands:
        await self._state.free.acquire()
        try:
            self._check(self._operation, self._asked)
            await self._limit.__aenter__()
        except BaseException:
            self._state.free.release()
            raise
        self._commands = self._state.begin(self)
        return self._commands

    def wait(self) -> None:
        """Another step has passed without an answer."""
        self._left -= 1
        if not self._left:
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(self, *raised: Any) -> None:
        self._state.end(self, self._commands)
        error = raised[1]
        try:
            await self._limit.__aexit__(*raised)
        except TimeoutError as timeout:
            error = timeout
        if isinstance(error, RedisError | OSError | TimeoutError):
            raise _redis_error(self._operation, error) from error


def _open_pool(settings: Settings, pool_type: type[ConnectionPool]) -> ConnectionPool:
    options: dict[str, Any] = {
        "decode_responses": False,
        "max_connections": settings.redis_max_connections,
        "retry": Retry(NoBackoff(), 0),  # the driver would retry ten times
        "socket_connect_timeout": settings.redis_timeout_ms / 1000 + 5,  # `command` does not wait for so long
        "socket_timeout": None,  # a timer, and a task, for each command
    }
    if pool_type is BlockingConnectionPool:
        options |= dict.fromkeys(("socket_timeout", "timeout"), options["socket_connect_timeout"])
    if settings.redis_url is None:
        options |= {
            "host": settings.redis_host,
            "port": settings.redis_port,
            "username": settings.redis_user or None,
            "password": settings.redis_password.get_secret_value() or None,
        }
    with suppress(Exception):  # whose message can quote the URL, so it is not even the context of ours
        if settings.redis_url is not None:
            options = {**parse_url(settings.redis_url.get_secret_value()), **options}
        pool = pool_type(**options)
        pool.make_connection()  # which does not connect, but refuses unknown options
        return pool
    raise SettingsError(
        "CC_REDIS_URL is not usable; write redis://, rediss:// or unix://, and only options that redis-py knows."
    )


@contextmanager
def redis_errors(operation: str) -> Generator[None]:
    """Turn driver errors into `StoreUnavailableError`; `operation` opens the message."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise _redis_error(operation, error) from error


def _redis_error(operation: str, error: Exception) -> StoreUnavailableError:
    what = _first_line(error) if str(error) else f"{type(error).__name__}: no answer within CC_REDIS_TIMEOUT_MS"
    return StoreUnavailableError(f"{operation}: {what.rstrip('.')}.")
