"""A TCP proxy in front of a server, which can delay traffic, hold requests back, drop replies and reset connections."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from backtest_persist import Container, Settings, StoreUnavailableError, WriteOutcomeUnknownError
from tests.support.stopwatch import HANG

__all__ = ("DEADLINE", "Proxy", "acknowledged", "behind_proxy", "mongo_proxy", "redis_proxy", "with_short_deadline")

DEADLINE = 1.0
"""Seconds that an operation may take with settings of `with_short_deadline`."""

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Forwards bytes between clients and one server, as its attributes say at that moment."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]]) -> None:
        self._connect = connect
        self._clients: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.delay = 0.0
        """Seconds by which everything is delayed, in each direction."""
        self.passing = asyncio.Event()
        """While it is cleared, nothing is forwarded; what was sent is kept until it is set again."""
        self.passing.set()
        self.hold_back = b""
        """A request that contains these bytes waits for `released`, even when its client has disconnected."""
        self.is_holding = asyncio.Event()
        self.released = asyncio.Event()
        self.drop_reply_to = b""
        """The next request that contains these bytes is forwarded; its reply is dropped and its connection closed."""

    async def wait_until_disconnected(self) -> None:
        """Wait until no client is connected."""
        async with asyncio.timeout(HANG):
            while self._clients:
                gc.collect()
                await asyncio.sleep(0.01)

    def reset(self) -> None:
        """Break all connections with RST."""
        for client in self._clients:
            sock: socket.socket = client.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Carry one connection until both sides have closed it."""
        self._clients.add(client)
        try:
            answers, server = await self._connect()
            dropped = asyncio.Event()
            forth = asyncio.create_task(self._requests(reader, server, dropped))
            back = asyncio.create_task(self._replies(answers, client, dropped))
            try:
                await asyncio.wait([forth, back])
            finally:
                forth.cancel()
                back.cancel()
                server.close()
        finally:
            client.close()
            self._clients.discard(client)

    async def _requests(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, dropped: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                await self._wait()
                if self.hold_back and self.hold_back in data:
                    self.is_holding.set()
                    await self.released.wait()
                if self.drop_reply_to and self.drop_reply_to in data:
                    self.drop_reply_to = b""
                    dropped.set()
                server.write(data)
                await server.drain()
        with suppress(OSError):
            server.write_eof()

    async def _replies(
        self, answers: asyncio.StreamReader, client: asyncio.StreamWriter, dropped: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while (data := await answers.read(1 << 20)) and not dropped.is_set():
                await self._wait()
                client.write(data)
                await client.drain()
        client.close()

    async def _wait(self) -> None:
        await asyncio.sleep(self.delay)
        await self.passing.wait()


@asynccontextmanager
async def _listening(connect: Callable[[], Awaitable[Streams]]) -> AsyncGenerator[Proxy]:
    proxy = Proxy(connect)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(proxy.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def mongo_proxy(settings: Settings) -> AsyncGenerator[tuple[Proxy, Settings]]:
    """Start a proxy in front of the mongod of the settings; yields it and settings that lead through it."""
    parts = urlsplit(settings.mongo_connection_string.get_secret_value())
    async with _listening(lambda: _connect(unquote(parts.netloc))) as proxy:
        uri = parts._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
        yield proxy, settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})


@asynccontextmanager
async def behind_proxy(settings: Settings) -> AsyncGenerator[tuple[Proxy, Container]]:
    """Start a proxy in front of the mongod of a container; after the block it forwards what it has held back."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        try:
            yield proxy, container
        finally:
            proxy.delay = 0
            proxy.passing.set()
            proxy.released.set()
            await container.close()
        await proxy.wait_until_disconnected()


def with_short_deadline(settings: Settings) -> Settings:
    """Return the settings with `DEADLINE` for MongoDB."""
    return settings.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})


async def acknowledged(call: Callable[[], Awaitable[T]]) -> T:
    """Call again until it succeeds.

    With a short deadline a call may time out behind a write that is held back, and the first one on a busy machine.
    """
    async with asyncio.timeout(HANG):
        while True:
            with suppress(StoreUnavailableError, WriteOutcomeUnknownError):
                return await call()


@asynccontextmanager
async def redis_proxy(settings: Settings) -> AsyncGenerator[tuple[Proxy, Settings]]:
    """Start a proxy in front of the redis-server of the settings; yields it and settings that lead through it."""
    assert settings.redis_url is not None
    parts = urlsplit(settings.redis_url.get_secret_value())
    async with _listening(lambda: _connect(unquote(parts.path or parts.netloc))) as proxy:
        update: dict[str, Any] = {"redis_url": None, "redis_host": "127.0.0.1", "redis_port": proxy.port}
        yield proxy, settings.model_copy(update=update)


def _connect(place: str) -> Awaitable[Streams]:
    if place.startswith("/"):
        return asyncio.open_unix_connection(place)
    host, _, port = place.partition(":")
    return asyncio.open_connection(host, int(port))
