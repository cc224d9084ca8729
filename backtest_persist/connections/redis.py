"""The Redis side of a container."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    suppress,
)
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from backtest_persist.connections.circuit import CircuitBreaker
from backtest_persist.connections.deadlines import StepTimer
from backtest_persist.connections.per_loop import LoopAffinity, PerLoop, closed_error
from backtest_persist.connections.translation import Endpoint, redis_error
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
    """Sends commands; answers are as the server gives them: bytes, int, lists of them."""

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
    """Return a command with its arguments in UTF-8, whatever encoding the client has."""
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
    """The Redis side of one event loop: a client for the user, and the connections of our own commands."""

    def __init__(self, settings: Settings, injected: Redis | None) -> None:
        self.client = injected or Redis.from_pool(_open_pool(settings, BlockingConnectionPool))
        self.owned = injected is None
        self.connections = settings.redis_max_connections
        self.free = asyncio.Semaphore(self.connections)
        self._pool = _open_pool(settings, ConnectionPool) if injected is None else None
        self._idle: list[_Connection] = []
        self._seconds = settings.redis_timeout_ms / 1000
        self._timer = StepTimer(self._seconds / STEPS)
        setting = None if injected else "CC_REDIS_HOST" if settings.redis_url is None else "CC_REDIS_URL"
        self.endpoint = Endpoint("Redis", setting, partial(_host, self.client))

    def limit(self) -> AbstractAsyncContextManager[None]:
        """The time that one command has."""
        return self._timer.limit(self._seconds)

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
        self._timer.close()


class RedisService:
    """The Redis side of a container: one client per event loop, and the decision whether to ask Redis at all.

    Redis holds nothing that MongoDB does not know, so for a db service any Redis fault is a cache miss, and a circuit
    breaker decides whether Redis is asked. A command without an answer opens it at once, as the next one would lose as
    much time. A Redis that answers with an error is asked again; that costs no time.
    """

    def __init__(self, settings: Callable[[], Settings], logger: LoggerService, client: Redis | None = None) -> None:
        self._settings = settings
        self._logger = logger
        if client is not None and client.get_encoder().decode_responses:
            raise SettingsError("The redis_client must return bytes; open it without decode_responses=True.")
        self._injected = client
        self._affinity = LoopAffinity("Redis")
        self._states = PerLoop(self._open, _RedisState.close)
        self._refused: set[str] = set()
        self._circuit = CircuitBreaker()

    def _open(self) -> _RedisState:
        settings = self._settings()
        if self._injected is not None:
            conflict = self._affinity.conflict()
            if conflict is not None:  # for the db services a miss
                raise StoreUnavailableError(conflict, retryable=False, server="Redis", reason=ErrorReason.EVENT_LOOP)
        return _RedisState(settings, self._injected)

    @property
    def client(self) -> Redis:
        """The client of the running event loop; answers are bytes."""
        return self._states.get().client

    def check(self) -> None:
        """Raise a `SettingsError` if Redis cannot be reached by these settings at all; sends nothing."""
        with suppress(StoreUnavailableError):
            self._states.get()

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self._settings().allow_early_times

    @property
    def key_prefix(self) -> str:
        """The prefix of every key (``CC_REDIS_KEY_PREFIX``)."""
        return self._settings().redis_key_prefix

    def command(self, operation: str) -> AbstractAsyncContextManager[RedisCommands]:
        """Bound one command by ``CC_REDIS_TIMEOUT_MS``, from when one of our connections is free for it.

        Any fault is a `StoreUnavailableError`; `operation` opens its message.
        """
        return _Command(self._states.get(), operation, self._check)

    def _check(self, operation: str, asked: float) -> None:
        if self._states.closed:
            raise closed_error()
        if self._circuit.has_opened_since(asked):
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
        started = self._circuit.admit()
        if started is None:
            return default
        try:
            result = await call()
        except ClosedError:
            return default
        except StoreUnavailableError as error:
            if error.reason not in _ANSWERS:
                if self._circuit.fail(started, at_once=error.reason is ErrorReason.TIMEOUT):
                    self._logger.warning("redis.down", why=error, now="MongoDB alone")
            elif kind not in self._refused:
                self._refused.add(kind)
                self._logger.warning("redis.refuses", command=kind, why=error)
            return default
        if self._circuit.succeed() or kind in self._refused:
            self._logger.info("redis.back", command=kind)
            self._refused.discard(kind)
        return result

    def reconfigure(self) -> None:
        """Take new settings from the next operation on."""
        self._states.retire()
        self._states.closed = False
        self._circuit.reset()

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
            raise redis_error(self._operation, error, endpoint=self._state.endpoint) from error


def _host(client: Redis) -> str | None:
    kwargs: dict[str, Any] = getattr(getattr(client, "connection_pool", None), "connection_kwargs", {})
    if "path" in kwargs:
        return str(kwargs["path"])
    return f"{kwargs['host']}:{kwargs.get('port', 6379)}" if "host" in kwargs else None


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
        "CC_REDIS_URL is not usable; write redis://, rediss:// or unix://, and only options that redis-py knows.",
        setting="CC_REDIS_URL",
    )
