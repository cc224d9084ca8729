"""The Redis side of a container."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    suppress,
)
from typing import Any, Protocol, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from backtest_persist.connections.loops import Home, PerLoop, Watch, closed
from backtest_persist.connections.translation import redis_error
from backtest_persist.errors import (
    ClosedError,
    ErrorReason,
    SettingsError,
    StoreUnavailableError,
)
from backtest_persist.logger import LoggerService
from backtest_persist.settings import Settings

__all__ = ("RedisCommands", "RedisService")


T = TypeVar("T")


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
        return await self._client.execute_command(*_encoded(command))

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*_encoded(command))
        await pipeline.execute()


def _encoded(command: Sequence[str | bytes | int]) -> list[str | bytes | int]:
    """What follows the name of a command in UTF-8, whatever encoding the client has."""
    return [command[0], *(part.encode() if isinstance(part, str) else part for part in command[1:])]


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
        self._seconds = settings.redis_timeout_ms / 1000
        self._watch = Watch(self._seconds / STEPS)

    def limit(self) -> AbstractAsyncContextManager[None]:
        """The time that one command has."""
        return self._watch.limit(self._seconds)

    def begin(self) -> RedisCommands:
        """Take a connection; `free` was acquired for it."""
        if self._pool is None:
            return _Client(self.client)
        return self._idle.pop() if self._idle else _Connection(self._pool)

    def end(self, commands: RedisCommands) -> None:
        """Give the connection back."""
        self.free.release()
        if isinstance(commands, _Connection):
            self._idle.append(commands)

    async def close(self) -> None:
        if self.owned:
            for _ in range(self.connections):  # each command under way ends within its deadline
                await self.free.acquire()
            for connection in self._idle:
                await connection.close()
            await self.client.aclose()
            for _ in range(self.connections):  # for those that wait: they find the service closed
                self.free.release()
        self._watch.close()


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
        self._home = Home("Redis")
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
                raise StoreUnavailableError(
                    error.args[0], retryable=False, server="Redis", reason=ErrorReason.EVENT_LOOP
                ) from error
        return _RedisState(settings, self._injected)

    @property
    def client(self) -> Redis:
        """The client of the running event loop; answers are bytes."""
        return self._states.get().client

    def check(self) -> None:
        """Raise a `SettingsError` if Redis cannot be reached by these settings at all; sends nothing."""
        with suppress(StoreUnavailableError):
            self._states.get()

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
            raise closed()
        if self._is_open and self._failed_at > asked:
            raise StoreUnavailableError(
                f"{operation}: Redis stopped answering while others were waiting for it.",
                server="Redis",
                reason=ErrorReason.CIRCUIT_OPEN,
            )

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
            if error.reason not in _ANSWERS:
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

    def _failed(self, error: StoreUnavailableError, started: float) -> None:
        if started < self._failed_at:
            return  # concurrent failures are one
        was_open, self._failed_at = self._is_open, time.monotonic()
        silent = error.reason is ErrorReason.TIMEOUT
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

    async def close(self, *, reopened: bool = False) -> None:
        """Close the client of the running loop, if it was opened here; the service cannot be used any more.

        If it was `reopened` meanwhile, by other settings, those of before are closed alone.
        """
        self._states.closed = not reopened
        await self._states.close()


_ANSWERS = frozenset(
    {ErrorReason.SERVER_ERROR, ErrorReason.NOT_PERMITTED, ErrorReason.UNAUTHENTICATED, ErrorReason.EVENT_LOOP}
)
"""Reasons for which asking again costs no time."""


STEPS = 5


class _Command(AbstractAsyncContextManager[RedisCommands]):
    """Holds one of our connections for a command, as long as it may take."""

    __slots__ = ("_asked", "_check", "_commands", "_limit", "_operation", "_state")

    def __init__(self, state: _RedisState, operation: str, check: Callable[[str, float], None]) -> None:
        self._state = state
        self._operation = operation
        self._check = check
        self._asked = time.monotonic()
        self._limit = state.limit()

    async def __aenter__(self) -> RedisCommands:
        await self._state.free.acquire()
        try:
            self._check(self._operation, self._asked)
            await self._limit.__aenter__()
        except BaseException:
            self._state.free.release()
            raise
        self._commands = self._state.begin()
        return self._commands

    async def __aexit__(self, *raised: Any) -> None:
        self._state.end(self._commands)
        error = raised[1]
        try:
            await self._limit.__aexit__(*raised)
        except TimeoutError as timeout:
            error = timeout
        if isinstance(error, RedisError | OSError | TimeoutError):
            raise redis_error(self._operation, error) from error


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
