"""The MongoDB side of a container."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import Context
from datetime import UTC
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast

from bson.codec_options import CodecOptions
from pymongo import ReadPreference, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from backtest_persist.connections.deadlines import Deadline, StepTimer, driver_timeout
from backtest_persist.connections.drivers import Client, Collection, driver_of, is_client, open_client
from backtest_persist.connections.endpoint import Endpoint
from backtest_persist.connections.per_loop import LoopAffinity, PerLoop, closed_error, joined
from backtest_persist.connections.selection import ServerSelection, to_text
from backtest_persist.connections.translation import Operation, mongo_errors, timed_out
from backtest_persist.connections.values import CODEC_OPTIONS, Document
from backtest_persist.connections.workarounds import close_next_connection, is_sessionless
from backtest_persist.errors import (
    BacktestPersistError,
    ErrorReason,
    SettingsError,
    StoreUnavailableError,
)
from backtest_persist.logger import LoggerService
from backtest_persist.settings import DEFAULT_DATABASE, Settings

__all__ = ("MongoService", "MongoState")

STEP_SECONDS = 0.05
MANY_CONNECTIONS = 100
_SETTING = "CC_MONGO_CONNECTION_STRING"
_SRV = "mongodb+srv://"
_DNS_SHARE = 0.8
"""The part of a deadline that a DNS query may take, so that the words of the driver come before the end."""


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


D = TypeVar("D", bound=Drainable)
T = TypeVar("T")


class _Preparation:
    """An attempt to prepare a collection, which all those share who wait for it."""

    def __init__(self, collection: str) -> None:
        self.collection = collection
        self.is_settled = False
        """Whether nothing that was sent with other settings is in progress any more."""
        self.task: asyncio.Task[None]
        self.waiting = 0
        """How many callers have yet to go on after it."""
        self.followers: list[object] = []
        """Those who came when it had ended, but not all others had gone on."""

    async def follow(self) -> None:
        """Let those go on who have come earlier; that takes a few turns of the loop."""
        follower = object()
        self.followers.append(follower)
        try:
            while self.waiting or self.followers[0] is not follower:  # noqa: ASYNC110
                await asyncio.sleep(0)
        finally:
            self.followers.remove(follower)

    def unfinished(self) -> StoreUnavailableError:
        """Return the error of those who have waited long enough."""
        progress = "what was sent with other settings is still in progress; try again"
        if self.is_settled:
            progress = "its indexes are still being created; await wait_for_init() first"
        problem = f"Nothing was asked of {self.collection}: {progress}."
        return StoreUnavailableError(problem, collection=self.collection, server="MongoDB", reason=ErrorReason.BUSY)


class MongoState:
    """The MongoDB side of one event loop: its client, and the calls that are in progress."""

    def __init__(
        self,
        client: Client,
        database: AsyncDatabase[Document],
        seconds: float,
        setting: str | None,
        *,
        srv: bool,
        owned: bool,
    ) -> None:
        self.client = client
        self.database = database
        self.seconds = seconds
        self.prepared: set[str] = set()
        self.read_only: set[str] = set()
        """Those of the prepared collections that cannot be written to, by their indexes."""
        self._selection = ServerSelection(client, srv=srv)
        self._endpoint = Endpoint(
            "MongoDB",
            setting,
            partial(_hosts, client),
            outage=self._selection.outage,
            was_known=lambda: self._selection.was_known,
        )
        self._owned = owned
        self._driver = driver_of(client)
        self._timer = StepTimer(STEP_SECONDS)
        self._calls = 0
        self._idle = asyncio.Event()
        self._collections: dict[str, Collection] = {}
        self._preparing: dict[tuple[str, object], _Preparation] = {}
        self._drainables: dict[str, Drainable] = {}
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    @property
    def limit(self) -> Callable[[float], AbstractAsyncContextManager[None]] | None:
        """Bound what is awaited of the driver by so many seconds; None if that would break the driver."""
        return self._timer.limit if self._driver.bears_timers else None

    @property
    def has_transactions(self) -> bool:
        """Whether no server that the driver knows is a standalone, which has none."""
        servers = self.client.topology_description.server_descriptions().values()
        return all(server.server_type_name != "Standalone" for server in servers)

    def check_transactions(self) -> None:
        """Raise a `SettingsError` that says what to do if the server has no transactions."""
        if not self.has_transactions:
            raise SettingsError(
                "This MongoDB is a standalone, which has no transactions. Start mongod with --replSet rs0 and run "
                "`backtest-persist initiate`; one member is enough."
            )

    def collection(self, name: str) -> Collection:
        """The collection of that name."""
        collection = self._collections.get(name)
        if collection is None:
            collection = self._collections[name] = self.database.get_collection(name, codec_options=CODEC_OPTIONS)
        return collection

    def per_collection(self, name: str, create: "Callable[[MongoState], D]") -> D:
        """Return what works on a collection by itself; made on first use, drained before the client is closed."""
        if name not in self._drainables:
            self._drainables[name] = create(self)
        return cast("D", self._drainables[name])

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on that nobody waits for but `close`; it bounds itself, and raises nothing."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def start_session(self) -> Any:
        """Start an explicit session."""
        return await self._driver.start_session(self.client)

    async def start_transaction(self, session: Any) -> None:
        """Start a transaction of a session, with the write concern of all writes, which reads from the primary."""
        await self._driver.start_transaction(session, self.database.write_concern)

    def errors(self, operation: Operation) -> AbstractContextManager[None]:
        """Turn driver errors into ours, as `mongo_errors` does, with the address of this server."""
        return mongo_errors(operation, endpoint=self._endpoint)

    def timed_out(self, operation: Operation) -> BacktestPersistError:
        """Return the error of an operation that has not ended within its deadline."""
        return timed_out(operation, endpoint=self._endpoint)

    def deadline(
        self,
        operation: Operation,
        seconds: float | None = None,
        *,
        cut: bool = True,
    ) -> AbstractAsyncContextManager[None]:
        """End what is asked of MongoDB after so many seconds, by default those of one operation.

        What goes wrong meanwhile becomes an error of ours, as by `mongo_errors`. Without `cut` nothing is cancelled if
        the driver exceeds its deadline.
        """
        seconds = self.seconds if seconds is None else seconds
        limit = self._timer.limit(seconds) if cut and self._driver.bears_timers else nullcontext()
        return Deadline(self.client, self._selection, seconds, limit, mongo_errors(operation, endpoint=self._endpoint))

    async def select_server(self, operation: Operation) -> None:
        """Wait for a server that takes writes, as long as its ``serverSelectionTimeoutMS`` and an operation allow.

        Raises the error of `operation` if there is none then.
        """
        if not self._selection.is_known:
            with self.errors(operation):
                await self._selection.wait(self.seconds)

    @contextmanager
    def track(self) -> Generator[Self]:
        """Count as a call that closing waits for."""
        self._calls += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def drain(self) -> None:
        """Wait for the calls in progress, as long as one operation may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds + 2 * STEP_SECONDS):
                while self._calls:
                    await self._idle.wait()
                for drainable in self._drainables.values():  # last, as the calls may have sent something by them
                    await drainable.drain()
                if self._background:
                    await asyncio.wait(self._background)

    async def end(self) -> None:
        """Let nothing that was sent have an effect later; bounded by one deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                with driver_timeout(self.client, self.seconds):
                    for drainable in self._drainables.values():
                        await drainable.end()

    async def prepare(
        self,
        name: str,
        prepare: "Callable[[MongoState], Awaitable[None]]",
        *,
        patience: float | None = None,
        before: "Sequence[MongoState]" = (),
    ) -> None:
        """Let `prepare` succeed once for this collection, after all that was sent to it by the clients `before`.

        Those who call with the same `prepare` share one attempt, and wait for it as long as an operation may take, or
        `patience` in seconds; `prepare` bounds itself.
        """
        key = name, prepare
        attempt = self._preparing.get(key)
        if attempt is None:
            attempt = self._preparing[key] = _Preparation(name)
            attempt.task = asyncio.create_task(self._prepare(attempt, prepare, before), context=Context())
            attempt.task.add_done_callback(lambda _: self._leave(key))
        elif attempt.task.done():
            await attempt.follow()
            self._leave(key)
            if attempt.task.cancelled() or attempt.task.exception() is not None:
                if self._preparing.get(key) is attempt:
                    del self._preparing[key]
                await self.prepare(name, prepare, patience=patience, before=before)
            return
        attempt.waiting += 1
        try:
            with self.track():
                await joined(attempt.task, patience or self.seconds)
        except TimeoutError:
            if attempt.is_settled and not self._selection.is_known:
                raise self.timed_out(Operation("reading the indexes", name)) from None
            raise attempt.unfinished() from None
        finally:
            attempt.waiting -= 1
            self._leave(key)

    def _leave(self, key: tuple[str, object]) -> None:
        """End an attempt that has ended, and that nobody waits for any more."""
        attempt = self._preparing.get(key)
        if attempt is not None and attempt.task.done() and not attempt.waiting and not attempt.followers:
            del self._preparing[key]
            if not attempt.task.cancelled() and attempt.task.exception() is None:
                self.prepared.add(attempt.collection)

    async def _prepare(
        self,
        attempt: "_Preparation",
        prepare: "Callable[[MongoState], Awaitable[None]]",
        before: "Sequence[MongoState]",
    ) -> None:
        with self.track():
            try:
                async with asyncio.timeout(self.seconds):
                    for state in before:
                        await state._settled(attempt.collection)
            except (BacktestPersistError, TimeoutError) as error:
                raise attempt.unfinished() from error
            attempt.is_settled = True
            await prepare(self)

    async def _settled(self, name: str) -> None:
        """`Drainable.settle` for this collection, shared by all who wait for it, and by nobody else."""
        if name in self._drainables:
            settling = self._settling.get(name)
            if settling is None or settling.done():
                settling = asyncio.create_task(self._drainables[name].settle(), context=Context())
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
                if not _lacks_sessions(error):
                    raise
            await close_next_connection(self.database)
        return await send()

    async def close(self) -> None:
        """Close the client, if it was opened here, after the calls in progress; bounded by one more deadline."""
        until = time.monotonic() + self.seconds
        try:
            await self.drain()
            await self.end()
        finally:
            self._timer.close()
            for attempt in list(self._preparing.values()):  # building an index may take longer than that
                attempt.task.cancel()
            if self._owned:
                left = max(until - time.monotonic(), STEP_SECONDS)
                with driver_timeout(self.client, left):  # the driver tells the server that its sessions end, and waits
                    await self._driver.close(self.client)
            left = max(until - time.monotonic(), STEP_SECONDS)
            await self._selection.close(left, cancel=self._owned or self._driver.bears_timers)


def _lacks_sessions(error: BacktestPersistError | PyMongoError) -> bool:
    if isinstance(error, BacktestPersistError):
        return error.reason is ErrorReason.NO_SESSIONS
    return is_sessionless(error)


class _TrackedOperation(AbstractAsyncContextManager[None]):
    """An operation that `close` waits for, with its deadline.

    A class, as a generator that is left open at the end of its event loop is closed at any moment.
    """

    __slots__ = ("_accept", "_deadline", "_operation", "_tracked")

    def __init__(self, accept: Callable[[], AbstractContextManager[MongoState]], operation: Operation) -> None:
        self._accept = accept
        self._operation = operation

    async def __aenter__(self) -> None:
        self._tracked = self._accept()
        self._deadline = self._tracked.__enter__().deadline(self._operation)
        try:
            await self._deadline.__aenter__()
        except BaseException:
            self._tracked.__exit__(None, None, None)
            raise

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._deadline.__aexit__(*raised)
        finally:
            self._tracked.__exit__(None, None, None)


class MongoService:
    """The MongoDB side of a container: one client per event loop, the database, and prepared collections."""

    def __init__(self, settings: Callable[[], Settings], logger: LoggerService, client: Client | None = None) -> None:
        if not (client is None or is_client(client)):
            given = f"{type(client).__module__}.{type(client).__name__}"
            raise SettingsError(f"The mongo_client must be an AsyncIOMotorClient or an AsyncMongoClient, not {given}.")
        self._settings = settings
        self.logger = logger
        self._injected = client
        self._affinity = LoopAffinity("MongoDB")
        self._states = PerLoop(self._open, MongoState.close)

    def _open(self) -> MongoState:
        settings = self._settings()
        client = self._injected
        if client is None:
            client = _open_mongo(settings)
        elif (conflict := self._affinity.conflict()) is not None:
            raise SettingsError(conflict)
        concern: dict[str, Any] = dict(client.write_concern.document)
        if concern.get("w") == 0:
            raise SettingsError(
                "w=0 tells nobody whether a write was stored; leave it out, or say w=1 or w=majority.",
                setting=None if self._injected else _SETTING,
            )
        if not client.options.retry_writes:
            raise SettingsError(
                "retryWrites=false leaves writes without transaction numbers, so that one that the network delays can "
                "overwrite a later one; leave it out, or say retryWrites=true.",
                setting=None if self._injected else _SETTING,
            )
        if "w" not in concern:
            concern["w"] = "majority"
        if concern["w"] == "majority":
            concern.pop("j", None)  # with a majority, j=false makes every write slower
        if client.read_preference != ReadPreference.PRIMARY:
            self.logger.warning(
                "mongo.read_preference", ignored=True, why="only the primary shows every acknowledged write"
            )
        database = client.get_default_database(
            DEFAULT_DATABASE,
            codec_options=CodecOptions[Document](tz_aware=True, tzinfo=UTC),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern(**concern),
        )
        seconds = client.options.timeout or settings.mongo_timeout_ms / 1000  # one in the URI wins
        setting = _SETTING if self._injected is None else None
        srv = self._injected is None and settings.mongo_connection_string.get_secret_value().startswith(_SRV)
        return MongoState(client, database, seconds, setting, srv=srv, owned=self._injected is None)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings()

    @property
    def client(self) -> Client:
        """The client of the running event loop (Motor's or PyMongo's, by ``CC_MONGO_DRIVER``)."""
        return self._states.get().client

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The database of the running event loop: majority writes, or as the URI says, and primary reads."""
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
        return self._states.current_value is not None

    @property
    def seconds(self) -> float:
        """The deadline of one operation."""
        return self._states.get().seconds

    def accept(self) -> AbstractContextManager[MongoState]:
        """Begin something that `close` waits for; refused after `close`."""
        return self.open_state().track()

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on in the running event loop that nobody waits for but `close`; see `MongoState.background`."""
        self._states.get().background(work)

    def operation(self, operation: Operation) -> AbstractAsyncContextManager[None]:
        """Begin one operation: `accept` with its deadline; errors name the operation."""
        return _TrackedOperation(self.accept, operation)

    async def prepared(
        self, name: str, prepare: Callable[[MongoState], Awaitable[None]], *, patience: float | None = None
    ) -> MongoState:
        """Return what the running event loop holds, once `prepare` has succeeded for this client and this collection.

        A failed preparation is tried again by the next call; for the rest see `MongoState.prepare`.
        """
        while True:
            state = self.open_state()
            if name not in state.prepared:
                await state.prepare(name, prepare, patience=patience, before=self._states.retired_values)
            if state is self.open_state():  # of settings that may be others meanwhile
                return state

    def open_state(self) -> MongoState:
        """Return what the running event loop holds; refused after `close`."""
        if self._states.closed:
            raise closed_error()
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

        Operations in progress are waited for, as long as one may take.
        """
        self._states.closed = True
        await asyncio.gather(*(state.drain() for state in self._states.open_values))  # which may be using one another
        await self._states.close()


def _hosts(client: Client) -> str | None:
    addresses = client.topology_description.server_descriptions()
    return ",".join(to_text(host, port) for host, port in addresses) or None


def _describe_bad_uri(uri: str) -> str | None:
    """Return what is wrong with a connection string, where the driver would say less or nothing."""
    if not uri.strip():
        return "it is empty"
    if uri.strip()[0] in "'\"`" or uri.strip()[-1] in "'\"`":
        return "it is in quotes, which belong to the value here; remove them"
    if re.search(r"\s", uri):
        return "it holds a blank or a line break; remove it (in a password a blank is %20)"
    if "://" not in uri:
        return "it has no scheme"
    if re.match("(redis|unix)", uri):
        return "it is a Redis URL, which belongs into CC_REDIS_URL"
    return None


def _open_mongo(settings: Settings) -> Client:
    uri = settings.mongo_connection_string.get_secret_value()
    problem = _describe_bad_uri(uri)
    if problem is not None:
        raise SettingsError(f"{_SETTING} is not usable: {problem}; write mongodb://host/database.", setting=_SETTING)
    timeout = settings.mongo_timeout_ms
    options: dict[str, Any] = {
        "appName": "backtest-persist",
        "connectTimeoutMS": int(timeout * _DNS_SHARE) if uri.startswith(_SRV) else timeout,
        "maxPoolSize": settings.mongo_max_pool_size,
        "serverSelectionTimeoutMS": timeout,
        "timeoutMS": timeout,
        "tz_aware": True,
    }
    given = {option.partition("=")[0].lower() for option in re.split("[&;]", uri.partition("?")[2])}
    options = {name: value for name, value in options.items() if name.lower() not in given}
    try:
        client = open_client(settings.mongo_driver, uri, options)
        client.get_default_database(DEFAULT_DATABASE)
    except Exception as error:
        file = f"; it names a file that cannot be read: {error.strerror}" if isinstance(error, OSError) else ""
        problem = f"{type(error).__name__}{file}"
    else:
        return client
    raise SettingsError(  # out here without a context: the driver's message can quote the URI, and with it a password
        f"{_SETTING} is not usable ({problem}); write mongodb://host/database, names and passwords percent-encoded.",
        setting=_SETTING,
    )
