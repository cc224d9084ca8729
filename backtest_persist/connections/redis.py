"""The Redis side of a container."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    suppress,
)
from functools import partial
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster as SyncRedisCluster
from redis.exceptions import RedisError, ResponseError

from backtest_persist.connections.circuit import CircuitBreaker
from backtest_persist.connections.deadlines import StepTimer
from backtest_persist.connections.endpoint import Endpoint
from backtest_persist.connections.per_loop import LoopAffinity, PerLoop, closed_error
from backtest_persist.connections.redis_connection import BorrowedConnection, LateCommands, OwnConnection, RedisCommands
from backtest_persist.connections.redis_url import connection_options
from backtest_persist.connections.translation import SILENCE, redis_error
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


class _RedisState:
    """The Redis side of one event loop: a client for the user, and the connections of our own commands."""

    def __init__(self, settings: Settings, injected: Redis | None, on_loss: Callable[[], None]) -> None:
        self.client = injected or Redis.from_pool(_open_pool(settings, BlockingConnectionPool))
        self.owned = injected is None
        self.connections = settings.redis_max_connections
        self.free = asyncio.Semaphore(self.connections)
        self._pool = _open_pool(settings, ConnectionPool) if injected is None else None
        self._idle: list[OwnConnection] = []
        self._late = LateCommands()
        self._on_loss = on_loss
        self.was_known = False
        """Whether the server has answered."""
        self.refusal: StoreUnavailableError | None = None
        """Why it is not asked any more: it has told that it is a node of a cluster."""
        self._seconds = settings.redis_timeout_ms / 1000
        self._timer = StepTimer(self._seconds / STEPS)
        setting = None if injected else "CC_REDIS_HOST" if settings.redis_url is None else "CC_REDIS_URL"
        self.endpoint = Endpoint("Redis", setting, partial(_host, self.client), was_known=lambda: self.was_known)

    def limit(self) -> AbstractAsyncContextManager[None]:
        """The time that one command has."""
        return self._timer.limit(self._seconds)

    def begin(self) -> OwnConnection | BorrowedConnection:
        """Take a connection; `free` was acquired for it."""
        if self._pool is None:
            return BorrowedConnection(self.client.connection_pool, self._reconnected, look=not self.was_known)
        return self._idle.pop() if self._idle else OwnConnection(self._pool, self._late, self._on_loss)

    def _reconnected(self, _: Any) -> None:
        self._on_loss()

    def notice_loss(self) -> None:
        """Report it, once, if the connection that was used last is lost, which takes no command."""
        if self._idle:
            self._idle[-1].notice_loss()

    async def end(self, connection: OwnConnection | BorrowedConnection) -> None:
        """Give the connection back."""
        try:
            if isinstance(connection, OwnConnection):
                self._idle.append(connection)
            else:
                await connection.give_back()
        finally:
            self.free.release()

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
        if client is not None:
            _check_injected(client)
        self._injected = client
        self._affinity = LoopAffinity("Redis")
        self._states = PerLoop(self._open, _RedisState.close)
        self._refused: set[str] = set()
        self._circuit = CircuitBreaker()
        self._epoch = 0

    def _open(self) -> _RedisState:
        settings = self._settings()
        if self._injected is not None:
            conflict = self._affinity.conflict()
            if conflict is not None:  # for the db services a miss
                raise StoreUnavailableError(conflict, retryable=False, server="Redis", reason=ErrorReason.EVENT_LOOP)
        self._begin_epoch()  # nobody has watched the server since another loop, if any, has closed its connections
        return _RedisState(settings, self._injected, self._begin_epoch)

    def _begin_epoch(self) -> None:
        self._epoch += 1

    @property
    def epoch(self) -> int:
        """Changes when Redis may have lost what it held: after a fault, a lost connection, or other settings.

        It may lose something without a sign, by ``FLUSHALL`` or eviction.
        """
        state = self._states.current_value
        if state is not None:
            state.notice_loss()
        return self._epoch

    @property
    def client(self) -> Redis:
        """The client of the running event loop; answers are bytes."""
        return self._states.get().client

    @property
    def endpoint(self) -> Endpoint:
        """Where the connections of the running event loop lead."""
        return self._states.get().endpoint

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
            self._begin_epoch()
            if error.reason not in _ANSWERS:
                if self._circuit.fail(started, at_once=error.reason in _FAILING_AT_ONCE):
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
        self._begin_epoch()

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


_FAILING_AT_ONCE = frozenset({ErrorReason.TIMEOUT, ErrorReason.UNSUPPORTED})
"""Reasons for which the next call would fail as this one has."""


STEPS = 5


class _Command(AbstractAsyncContextManager[RedisCommands]):
    """Holds one of our connections for a command, as long as it may take."""

    __slots__ = ("_asked", "_check", "_connection", "_limit", "_operation", "_state")

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
            if self._state.refusal is not None:
                raise self._state.refusal.copy()
            await self._limit.__aenter__()
        except BaseException:
            self._state.free.release()
            raise
        self._connection = self._state.begin()
        return self._connection

    async def __aexit__(self, *raised: Any) -> None:
        error: BaseException | None = raised[1]
        if error is None or isinstance(error, ResponseError):
            self._state.was_known = True
        else:
            self._connection.abort()
        try:
            await self._limit.__aexit__(*raised)
        except TimeoutError as timeout:
            error = timeout
        finally:
            await self._state.end(self._connection)
        if isinstance(error, RedisError | OSError | TimeoutError):
            ours = redis_error(self._operation, error, endpoint=self._state.endpoint)
            if ours.reason is ErrorReason.UNSUPPORTED and isinstance(error, ResponseError):
                self._state.refusal = ours  # not known by its HELLO, so that another look would not help
            raise ours from (None if ours.reason in SILENCE else error)


def _check_injected(client: Any) -> None:
    if isinstance(client, RedisCluster | SyncRedisCluster):
        raise SettingsError(
            "The redis_client is a RedisCluster, which this package does not use; give it a redis.asyncio.Redis of a "
            "Redis that is not clustered. It holds ids only, so a small one is enough."
        )
    if not isinstance(client, Redis):
        raise SettingsError(
            f"The redis_client must be a redis.asyncio.Redis, not {type(client).__module__}.{type(client).__name__}."
        )
    if client.get_encoder().decode_responses:
        raise SettingsError("The redis_client must return bytes; open it without decode_responses=True.")


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
    options = {**connection_options(settings), **options}
    if pool_type is ConnectionPool:
        options.setdefault("protocol", 2)  # whose handshake takes half the time
    with suppress(Exception):  # whose message can quote the URL, so it is not even the context of ours
        pool = pool_type(**options)
        pool.make_connection()  # which does not connect, but refuses unknown options
        return pool
    raise SettingsError(
        "CC_REDIS_URL is not usable: redis-py does not take its options.",
        setting="CC_REDIS_URL",
    )
