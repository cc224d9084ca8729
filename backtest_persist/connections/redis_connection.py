"""One connection to Redis: commands, the look at the server behind it, and what becomes of bytes that were not sent."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast
from uuid import uuid4

from redis.asyncio import ConnectionPool
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from backtest_persist.connections.workarounds import is_left, transport_of

__all__ = (
    "BorrowedConnection",
    "LateCommands",
    "OwnConnection",
    "RedisCommands",
    "UnsupportedServerError",
    "hello_facts",
)


class RedisCommands(Protocol):
    """Sends commands; answers are as the server gives them: bytes, int, lists of them."""

    async def execute(self, *command: str | bytes | int) -> Any:
        """Send a command and return its answer."""
        ...

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        """Send commands in one round trip."""
        ...


class UnsupportedServerError(RedisError):
    """The server is a node of a Redis Cluster or a Sentinel."""

    def __init__(self, mode: str) -> None:
        Exception.__init__(self, mode)  # redis-py's takes more, untyped
        self.mode = mode
        """``cluster`` or ``sentinel``."""


class LateCommands:
    """The connections of which a command may still be on its way to the server, though nobody waits for it any more."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._ids: set[int] = set()

    def add(self, id: int, name: str) -> None:
        """Remember a connection that was aborted, as the server calls it."""
        self._ids.add(id)
        self._names.add(name)

    async def fence(self, send: Callable[..., Awaitable[Any]]) -> None:
        """Let the server close these connections, so that it never carries out what they still receive.

        It counts its connections anew when it is restarted, so the names are compared as well. Without the right to do
        this, or before Redis 6.2, such commands are left to the network.
        """
        ids, names = set(self._ids), set(self._names)
        if not ids:
            return
        with suppress(ResponseError):
            listed = _text(await send("CLIENT", "LIST", "ID", *ids))
            for line in listed.splitlines():
                facts = {name: value for name, _, value in (part.partition("=") for part in line.split())}
                if facts.get("name") in names:
                    await send("CLIENT", "KILL", "ID", facts["id"])
        self._ids -= ids
        self._names -= names


class _Connection(ABC):
    """The commands by one connection of redis-py: half the work of a client, whose retries we do not need."""

    _connection: Any
    _transport: asyncio.WriteTransport | None = None

    async def execute(self, *command: str | bytes | int) -> Any:
        """Send a command and return its answer."""
        await self._open()
        return await self._send(*command)

    async def _send(self, *command: str | bytes | int) -> Any:
        await self._connection.send_command(*command)
        return await self._connection.read_response()

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        """Send commands in one round trip."""
        await self._open()
        await self._connection.send_packed_command(self._connection.pack_commands(commands))
        refused: ResponseError | None = None
        for _ in commands:
            try:
                await self._connection.read_response()
            except ResponseError as error:  # the other answers are still to come
                refused = error
        if refused is not None:
            raise refused

    @abstractmethod
    async def _open(self) -> None:
        """Make the connection ready for a command."""

    def _opened(self) -> None:
        self._transport = transport_of(self._connection)

    @property
    def _is_closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    def abort(self) -> None:
        """Drop what was not sent yet, and the connection: otherwise a write would arrive after a later one."""
        current = None if self._connection is None else transport_of(self._connection)  # redis-py may have reconnected
        for transport in (self._transport, current):
            if transport is not None:
                transport.abort()

    async def _look(self, *arguments: str | int) -> int | None:
        """Send HELLO and return the id of this connection; None if the server does not tell.

        Raises `UnsupportedServerError` if the server is a node of a cluster or a Sentinel.
        """
        try:
            facts = hello_facts(await self._send("HELLO", *arguments))
        except (AuthenticationError, ResponseError):  # of Redis 5, or without a login: the command will tell
            return None
        if facts.get("mode") in ("cluster", "sentinel"):
            await self._connection.disconnect(nowait=True)
            raise UnsupportedServerError(facts["mode"])
        return int(facts["id"]) if "id" in facts else None


class OwnConnection(_Connection):
    """A connection that was opened here; it connects with the first command, and anew when it is lost."""

    def __init__(self, pool: ConnectionPool, late: LateCommands, on_loss: Callable[[], None]) -> None:
        self._connection = pool.make_connection()
        self._late = late
        self._on_loss = on_loss
        self._is_lost = False
        self._id: int | None = None
        self._name = ""

    async def _open(self) -> None:
        """Leave a connection that the server has closed meanwhile, or that was aborted."""
        connection = self._connection
        if connection.is_connected and (self._is_closing or await connection.can_read()):
            self.notice_loss()
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            await connection.connect()
            self._opened()
            self._is_lost = False
            self._name = f"backtest-persist:{uuid4().hex}"
            named = () if connection.client_name else (connection.get_protocol(), "SETNAME", self._name)
            id = await self._look(*named)
            self._id = id if named else None
        await self._late.fence(self._send)

    def abort(self) -> None:
        """Drop what was not sent yet, and the connection; what was sent is fenced before the next command."""
        super().abort()
        if self._id is not None:
            self._late.add(self._id, self._name)
            self._id = None

    def notice_loss(self) -> None:
        """Report, once, that the connection was closed since it was used last, by either side."""
        if not self._is_lost and (self._is_closing or is_left(self._connection)):
            self._is_lost = True
            self._on_loss()

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.disconnect()


class BorrowedConnection(_Connection):
    """A connection of the client that the container was given, for one command; its pool keeps it usable."""

    def __init__(self, pool: ConnectionPool, on_reconnect: Callable[[Any], None], *, look: bool) -> None:
        self._pool = pool
        self._on_reconnect = on_reconnect
        self._is_to_look = look
        self._connection = None

    async def _open(self) -> None:
        if self._connection is None:
            self._connection = await self._pool.get_connection()
            self._connection.register_connect_callback(self._on_reconnect)
            self._opened()
        if self._is_to_look:
            await self._look()
            self._is_to_look = False

    async def execute(self, *command: str | bytes | int) -> Any:
        """Send a command in UTF-8, whatever encoding the client has, and return its answer."""
        return await super().execute(*_encoded(command))

    async def execute_all(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        """Send commands in UTF-8 in one round trip."""
        await super().execute_all([_encoded(command) for command in commands])

    async def give_back(self) -> None:
        """Return the connection to the pool of the client."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if self._is_closing:
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)


def _encoded(command: Sequence[str | bytes | int]) -> tuple[str | bytes | int, ...]:
    return (command[0], *(part.encode() if isinstance(part, str) else part for part in command[1:]))


def hello_facts(hello: Any) -> dict[str, str]:
    """Return what a server has answered to HELLO, as text: ``mode`` is standalone, cluster or sentinel."""
    if isinstance(hello, Mapping):
        items = list(cast("Mapping[Any, Any]", hello).items())
    else:  # of RESP2
        items = list(zip(hello[::2], hello[1::2], strict=True))
    return {_text(name): _text(value) for name, value in items}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
