"""Containers and event loops: no I/O before the first operation, one set of clients per loop, closed with it."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from backtest_persist import (
    ClosedError,
    Container,
    Settings,
    SettingsError,
    StoreUnavailableError,
    base_map,
    ioc,
    persist,
    setup,
)
from tests.support.commands import Commands, close_client, monitored_client
from tests.support.stopwatch import HANG


def open_sockets() -> int:
    """How many sockets this process holds."""
    targets: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them is gone
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(target.startswith("socket:") for target in targets)


async def roundtrip(n: int) -> None:
    signal = await persist.signal("s", "t", "e")
    await signal.write_signal_data({"n": n})
    assert await signal.read_signal_data() == {"n": n}
    assert await ioc.signal_cache_service.get_signal_id("s", "t", "e") is not None


def in_a_thread(target: Any) -> None:
    """Run outside the event loop of the tests."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


async def test_the_same_ioc_works_in_one_asyncio_run_after_another(settings: Settings) -> None:
    """Two asyncio.run calls in a row use one ioc, and no socket is left open by either."""
    setup(settings)

    def run_twice() -> None:
        asyncio.run(roundtrip(1))
        asyncio.run(roundtrip(2))

    try:
        await asyncio.to_thread(in_a_thread, run_twice)  # warm up the driver's own threads
        gc.collect()
        before = open_sockets()
        await asyncio.to_thread(in_a_thread, run_twice)
        gc.collect()
        async with asyncio.timeout(HANG):  # Motor's monitor threads let go of theirs a moment later
            while open_sockets() > before:
                await asyncio.sleep(0.05)
    finally:
        ioc.configure({})


async def test_loops_in_two_threads_share_an_ioc(settings: Settings) -> None:
    """Two loops that run at the same time have separate clients and see each other's writes."""
    setup(settings)

    async def many(start: int) -> None:
        for n in range(start, start + 20):
            await ioc.state_db_service.upsert("sig", f"b{n}", {"n": n}, -n)

    try:
        await asyncio.gather(
            asyncio.to_thread(lambda: asyncio.run(many(0))), asyncio.to_thread(lambda: asyncio.run(many(20)))
        )
        rows = await ioc.state_db_service.find_all()
        assert sorted(-row.when for row in rows) == list(range(40))
    finally:
        await ioc.close()
        ioc.configure({})


@pytest.mark.asyncio(loop_scope="function")
async def test_a_function_scoped_loop_works(settings: Settings) -> None:
    """Ioc works in a function-scoped loop next to the session-scoped one."""
    setup(settings)
    await roundtrip(3)
    ioc.configure({})


async def test_a_closed_container_says_so(settings: Settings) -> None:
    """Closing twice is fine; an operation afterwards is a ClosedError; configure opens it again."""
    container = Container(settings)
    await container.close()  # before it was ever used
    container.configure(settings)
    async with container:
        await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    await container.close()
    for operation in (
        container.signal_db_service.find_by_context("s", "t", "e"),
        container.signal_db_service.upsert("s", "t", "e", {"n": 2}),
        container.signal_cache_service.get_signal_id("s", "t", "e"),
    ):
        with pytest.raises(ClosedError):
            await operation
    container.configure(settings)
    row = await container.signal_db_service.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload == {"n": 1}
    await container.close()


async def test_an_injected_redis_client_stays_open(settings: Settings, servers: Settings) -> None:
    """A client that was opened elsewhere is used and not closed."""
    mine = Container(settings)
    client: Redis = mine.redis_service.client
    async with Container(settings, redis_client=client) as container:
        row = await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    assert await mine.signal_cache_service.get_signal_id("s", "t", "e") == row.id
    await mine.close()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-16"])
async def test_an_injected_redis_client_may_have_any_encoding(settings: Settings, encoding: str) -> None:
    """Contexts in any script are stored, found and remembered under the same keys as by a client of our own."""
    redis: Any = Redis
    url = settings.redis_url
    if url is None:  # a server that is named by its host
        injected = redis(host=settings.redis_host, port=settings.redis_port, encoding=encoding)
    else:
        injected = redis.from_url(url.get_secret_value(), encoding=encoding)
    names = ["₿TC", "naïve", "BTC"]
    async with (
        injected as client,
        Container(settings, redis_client=client) as container,
        Container(settings) as mine,
    ):
        db, prefix = container.signal_db_service, settings.redis_key_prefix
        rows = [await db.upsert(names[0], "t", "e", {"n": 0})]  # alone, then together
        rows += await asyncio.gather(*(db.upsert(name, "t", "e", {"n": 1}) for name in names[1:]))
        keys = [f"{prefix}signal_cache:e:t:{name}".encode() for name in names]
        assert [await client.get(key) for key in keys] == [row.id.encode() for row in rows]
        assert await db.find_by_context(names[0], "t", "e") == rows[0]
        assert await asyncio.gather(*(db.find_by_context(name, "t", "e") for name in names)) == rows
        assert (db.stats.lookups, db.stats.hits) == (4, 4)
        for cache in (container.signal_cache_service, mine.signal_cache_service):
            assert [await cache.get_signal_id(name, "t", "e") for name in names] == [row.id for row in rows]
            assert {key async for key, _ in cache.iterate()} == {f"e:t:{name}" for name in names}
        await container.signal_cache_service.clear()
        assert await mine.signal_cache_service.size() == 0
        expiring = base_map("expiring", 60)
        await expiring(container.redis_service).set_many([(name, name) for name in names])
        assert await expiring(mine.redis_service).get_many(names) == names


async def test_an_injected_client_belongs_to_one_loop(settings: Settings, driver: str) -> None:
    """In another loop a Mongo client is a SettingsError; a Redis client is a miss, and neither is disturbed."""
    mongo, mine = monitored_client(settings, driver, Commands()), Container(settings)
    redis: Any = mine.redis_service.client
    container = Container(settings, mongo_client=mongo)
    cached = Container(settings.model_copy(update={"id_memory": 0}), redis_client=redis)
    db = cached.signal_db_service
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    await db.upsert("s", "t", "e", {"n": 1})

    async def elsewhere() -> None:
        for operation in (
            container.signal_db_service.find_by_context("s", "t", "e"),
            container.signal_db_service.upsert("s", "t", "e", {"n": 2}),
        ):
            with pytest.raises(SettingsError, match="loop"):
                await operation
        for _ in range(10):
            assert await db.find_by_context("s", "t", "e") is not None
        assert db.stats.hits == 0
        with pytest.raises(StoreUnavailableError, match="loop"):
            await cached.signal_cache_service.get_signal_id("s", "t", "e")

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert await db.find_by_context("s", "t", "e") is not None
    assert db.stats.hits == 1
    assert await container.signal_db_service.find_by_context("s", "t", "e") is not None
    for opened in (container, cached, mine):
        await opened.close()
    await close_client(mongo)


async def test_redis_is_optional(settings: Settings) -> None:
    """With no Redis at all every operation goes on with MongoDB alone; the cache service itself says what is wrong."""
    down = settings.model_copy(update={"redis_url": None, "redis_host": "127.0.0.1", "redis_port": 1})
    async with Container(down) as container:
        for n in range(20):
            await container.state_db_service.upsert("sig", "b", {"n": n}, -n)
            row = await container.state_db_service.find_by_context("sig", "b")
            assert row is not None
            assert row.payload == {"n": n}
        assert await container.log_db_service.create_many([{"id": "a"}]) == 1
        with pytest.raises(StoreUnavailableError, match="state_cache"):
            await container.state_cache_service.get_state_id("sig", "b")


UNUSABLE = ["http://localhost/0", "redis://localhost/0?hunter2=1"]


@pytest.mark.parametrize("url", UNUSABLE)
async def test_a_redis_url_that_cannot_work_is_found_before_anything_is_written(settings: Settings, url: str) -> None:
    """On entry, and by the first operation of any kind, it is a SettingsError; no document is stored, no index made."""
    bad = settings.model_copy(update={"redis_url": SecretStr(url)})
    with pytest.raises(SettingsError, match="CC_REDIS_URL"):
        async with Container(bad):
            pass
    container = Container(bad)
    prices = dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)
    for operation in (
        container.signal_db_service.upsert("s", "t", "e", {"n": 1}),
        container.storage_db_service.upsert_many(True, [{"id": "a"}]),
        container.log_db_service.create_many([{"id": "a"}]),
        container.candle_db_service.create("s", "1m", "e", {"timestamp": 0, **prices}),
        container.candle_db_service.create_many("s", "1m", "e", [{"timestamp": 0, **prices}]),
        container.measure_db_service.soft_remove("b", "k"),
        container.signal_db_service.find_by_context("s", "t", "e"),
        container.wait_for_init(),
    ):
        with pytest.raises(SettingsError, match="CC_REDIS_URL") as caught:
            await operation
        assert "hunter2" not in str(caught.value)
    assert await container.mongo_service.database.list_collection_names() == []
    await container.close()


async def test_a_warm_container_that_is_given_an_unusable_redis_url_writes_nothing(container: Container) -> None:
    """Stored documents stay as they are, and usable settings make the container work again."""
    db, settings = container.signal_db_service, container.settings
    row = await db.upsert("s", "t", "e", {"n": 1})
    container.configure(settings.model_copy(update={"redis_url": SecretStr(UNUSABLE[0])}))
    with pytest.raises(SettingsError, match="CC_REDIS_URL"):
        await db.upsert("s", "t", "e", {"n": 2})
    ends = await asyncio.gather(*(db.upsert("s", "t", name, {"n": 2}) for name in "ef"), return_exceptions=True)
    assert [type(end) for end in ends] == [SettingsError] * 2
    container.configure(settings)
    assert await db.find_all() == [row]


async def test_without_mongo_an_operation_ends_with_a_typed_error(settings: Settings) -> None:
    """No server, no result: StoreUnavailableError within the deadline, whose message holds no secret."""
    gone = settings.model_copy(
        update={
            "mongo_connection_string": type(settings.mongo_connection_string)("mongodb://joe:hunter2@127.0.0.1:1/x"),
            "mongo_timeout_ms": 300,
        }
    )
    container = Container(gone)
    with pytest.raises(StoreUnavailableError) as caught:
        await container.signal_db_service.find_by_context("s", "t", "e")
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)
    with pytest.raises(StoreUnavailableError):
        await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    await container.close()


@pytest.mark.parametrize("uri", ["mongodb://", "http://host/x", "mongodb://user:hunter2@host:port/x"])
async def test_a_connection_string_that_cannot_work_is_a_settings_error(uri: str, driver: str) -> None:
    """The message names the setting and not its value."""
    container = Container({"mongo_connection_string": uri, "mongo_driver": driver})
    with pytest.raises(SettingsError, match="CC_MONGO_CONNECTION_STRING") as caught:
        await container.signal_db_service.find_by_context("s", "t", "e")
    assert "hunter2" not in str(caught.value)


def test_importing_and_touching_attributes_does_no_io() -> None:
    """In a process that may not open a socket, and with settings that make no sense, everything is there."""
    script = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("I/O")
socket.socket.connect = refuse
import backtest_persist as bp
names = [name for name in vars(bp.ioc) if name.endswith(("_cache_service", "_db_service"))]
assert len(names) == 2 * len(bp.ioc.domains), names
bp.ioc.mongo_service, bp.ioc.redis_service, bp.ioc.logger_service
bp.PersistSignalInstance("s", "t", "e"), bp.base_map("x")()
bp.Container()
import threading
assert threading.active_count() == 1
assert "asyncio" not in {t.name for t in threading.enumerate()}
"""
    environment = {**os.environ, "CC_REDIS_PORT": "not-a-port"}
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [("", 0.7), ("wtimeoutMS=15000", 0.7), ("serverSelectionTimeoutMS=9000", 0.7), ("TimeoutMS=2000&w=1", 2.0)],
)
async def test_the_deadline_is_the_setting_s_unless_the_uri_has_one(options: str, seconds: float, driver: str) -> None:
    """CC_MONGO_TIMEOUT_MS bounds every operation, with the default connection string too; timeoutMS in the URI wins."""
    uri = f"mongodb://localhost:1/x?{options}"
    container = Container({"mongo_connection_string": uri, "mongo_timeout_ms": 700, "mongo_driver": driver})
    client: Any = container.mongo_service.client
    assert client.options.timeout == seconds
    await container.close()


async def test_the_write_concern_is_majority_unless_the_uri_has_another(settings: Settings) -> None:
    """Majority is the default, a w of the URI is kept, and reads go to the primary whatever the URI says."""
    uri = settings.mongo_connection_string.get_secret_value()
    joint = "&" if "?" in uri else "?"
    for suffix, expected in (("wtimeoutMS=15000", "majority"), ("w=1", 1), ("readPreference=secondary", "majority")):
        changed = settings.model_copy(
            update={"mongo_connection_string": type(settings.mongo_connection_string)(f"{uri}{joint}{suffix}")}
        )
        container = Container(changed)
        database = container.mongo_service.database
        assert database.write_concern.document["w"] == expected
        assert database.read_preference.name == "Primary"
        await container.close()
