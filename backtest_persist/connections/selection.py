"""Server selection: the wait for a MongoDB server that takes writes, and why there is none, in words for an error."""

import asyncio
import re
import time
from contextvars import Context
from typing import Any

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError, ServerSelectionTimeoutError

from backtest_persist.connections.endpoint import NO_NAME_SERVER, Outage

__all__ = ("ServerSelection", "to_text")

_SHOWN_SERVERS = 3


class ServerSelection:
    """Waits for a server in one event loop, as long as ``serverSelectionTimeoutMS`` and an operation allow.

    Under a deadline PyMongo waits for a server until that deadline, however short this option is, looks at its clock
    only every 0.5 s, and does not bound DNS queries (``mongodb+srv``) by it. So an unknown server is sent a ping first,
    in a task that callers share and leave behind when their time is up.
    """

    def __init__(self, client: AsyncMongoClient[Any], *, srv: bool) -> None:
        self._client = client
        self._srv = srv
        self._ping: asyncio.Task[Any] | None = None
        self.was_known = False
        """Whether a server that takes writes was ever there."""

    @property
    def is_known(self) -> bool:
        """Whether the driver knows a server that takes writes."""
        known = self._client.topology_description.has_writable_server()
        self.was_known = self.was_known or known
        return known

    def is_up_to_us(self, seconds: float) -> bool:
        """Whether a command with that deadline would, by itself, wait too long for an unknown server."""
        return self._srv or self._client.options.server_selection_timeout < seconds

    async def wait(self, seconds: float) -> None:
        """Wait for a server that takes writes, for so many seconds at most.

        Raises `ServerSelectionTimeoutError` if there is none, and what the driver says about DNS; other errors are left
        to the command that follows.
        """
        timeout = min(self._client.options.server_selection_timeout, seconds)
        until = time.monotonic() + timeout
        while not self.is_known:
            ping = self._shared_ping(timeout)
            await asyncio.wait({ping}, timeout=max(0.0, until - time.monotonic()))
            error = _outcome(ping)
            if isinstance(error, ConfigurationError):  # of DNS
                raise error
            if not isinstance(error, ServerSelectionTimeoutError):
                return
            if time.monotonic() >= until:
                raise ServerSelectionTimeoutError

    def _shared_ping(self, seconds: float) -> asyncio.Task[Any]:
        async def ping() -> None:
            with pymongo.timeout(max(seconds, 0.001)):
                await self._client.admin.command("ping")

        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(ping(), context=Context())
            self._ping.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting
        return self._ping

    async def close(self, seconds: float, *, cancel: bool) -> None:
        """End the ping that callers have left behind; without `cancel` it is waited for, for so many seconds at most.

        A client that lives on does not survive a cancellation (`PYMONGO_SURVIVES_A_TIMER`).
        """
        if self._ping is not None:
            if cancel:
                self._ping.cancel()
            await asyncio.wait({self._ping}, timeout=seconds)

    def outage(self) -> Outage | None:
        """Return why there is no server that takes writes; None if there is one."""
        if self.is_known:
            return None
        topology = self._client.topology_description
        servers = topology.server_descriptions()
        said: list[str] = []
        for (host, port), server in servers.items():
            address = to_text(host, port)
            if server.error is not None:
                said.append(_words(server.error, address))
            elif server.is_server_type_known:
                said.append(f"{address} is {_KINDS.get(server.server_type_name, server.server_type_name)}")
            elif port is None and self._srv:
                said.append(f"{address}: {NO_NAME_SERVER}")
            else:
                said.append(f"{address} has not answered")
        shown = "; ".join(dict.fromkeys(said[:_SHOWN_SERVERS])) or "no member of the replica set is known"
        return Outage(
            f"no primary answers: {shown}",
            was_known=self.was_known,
            has_members=any(server.is_server_type_known for server in servers.values()),
        )


def _outcome(ping: asyncio.Task[Any]) -> BaseException | None:
    if not ping.done():
        return ServerSelectionTimeoutError()
    return None if ping.cancelled() else ping.exception()  # cancelled: the client was closed


def to_text(host: str, port: int | None) -> str:
    """Return the address of a server as errors show it; one on a Unix socket has no port."""
    return host if port is None or host.startswith("/") else f"{host}:{port}"


_KINDS = {"RSSecondary": "a secondary", "RSArbiter": "an arbiter", "RSOther": "starting up or hidden"}


def _words(error: BaseException, address: str) -> str:
    text = re.sub(r" \(configured timeouts: [^)]*\)", "", str(error).partition("\n")[0])[:200].rstrip(". ")
    return text if address in text else f"{address}: {text}"
