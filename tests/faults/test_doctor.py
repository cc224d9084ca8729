"""`examine` on servers that fail: it ends in time, names the fault, and accepts what does no harm."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from backtest_persist import Container, Settings, StoreUnavailableError
from backtest_persist.operations import Level, examine, verify
from tests.support.diagnoses import levels, not_ok
from tests.support.fail_points import Failing
from tests.support.servers import configured_redis, suspended_mongo, suspended_redis
from tests.support.stopwatch import Stopwatch

OF_REDIS = pytest.mark.parametrize("driver", ["motor"], indirect=True)
"""For what the doctor asks Redis, which is the same with each driver of MongoDB."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Deadlines that a test can wait for."""
    return settings.model_copy(update={"mongo_timeout_ms": 1000, "redis_timeout_ms": 100})


@asynccontextmanager
async def delayed(path: str, seconds: float) -> AsyncGenerator[int]:
    """A proxy before a Unix socket that passes on each answer after a time; yields its port."""
    relays: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(wait)
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(path)
        for pair in ((reader, server_writer, 0.0), (server_reader, writer, seconds)):
            relays.add(asyncio.create_task(pump(*pair)))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as proxy:
        yield proxy.sockets[0].getsockname()[1]
        await asyncio.gather(*relays)


async def test_a_mongod_that_answers_nothing(container: Container) -> None:
    """One deadline of MongoDB later it is a problem, and Redis has been looked at."""
    await container.wait_for_init()
    async with suspended_mongo(container):
        with Stopwatch() as watch:
            diagnosis = await examine(container)
        assert watch.seconds < 2.5
        with pytest.raises(StoreUnavailableError):
            await verify(container)
    assert not_ok(diagnosis).keys() == {"mongodb"}
    assert not_ok(diagnosis)["mongodb"].level is Level.PROBLEM
    assert "redis.latency" in {finding.check for finding in diagnosis.findings}


@OF_REDIS
async def test_a_redis_that_answers_nothing(container: Container) -> None:
    """One deadline later it is a problem, and MongoDB has been looked at."""
    await container.wait_for_init()
    async with suspended_redis(container):
        with Stopwatch() as watch:
            diagnosis = await examine(container)
        assert watch.seconds < 7
    assert not_ok(diagnosis).keys() == {"redis"}
    assert not_ok(diagnosis)["redis"].level is Level.PROBLEM
    assert "no answer within 5 s" in not_ok(diagnosis)["redis"].text
    assert "mongodb.latency" in {finding.check for finding in diagnosis.findings}


async def test_a_mongod_that_stops_answering_on_the_way(container: Container, failing: Failing) -> None:
    """The examination ends within three deadlines, with what was found until then."""
    await container.wait_for_init()
    async with failing("listIndexes", times=100, blockConnection=True, blockTimeMS=5000):
        with Stopwatch() as watch:
            diagnosis = await examine(container)
        assert watch.seconds < 4
    assert levels(diagnosis)["mongodb.indexes.signal"] is Level.PROBLEM
    assert "mongodb.rights" not in levels(diagnosis)


async def test_a_mongod_that_is_just_in_time_every_time(container: Container, failing: Failing) -> None:
    """Commands that each stay within the deadline do not add up: three deadlines are the end."""
    await container.wait_for_init()
    async with failing("ping", times=100, blockConnection=True, blockTimeMS=900):
        with Stopwatch() as watch:
            found = not_ok(await examine(container))
        assert watch.seconds < 4
    assert {check: finding.level for check, finding in found.items()} == {"mongodb": Level.PROBLEM}


async def test_pings_that_take_long_are_warnings(container: Container, failing: Failing) -> None:
    """More than a tenth of the deadline of an operation is worth a line; the median is measured in ms."""
    await container.wait_for_init()
    async with failing("ping", times=100, blockConnection=True, blockTimeMS=150):
        found = not_ok(await examine(container))
    assert {check: finding.level for check, finding in found.items()} == {"mongodb.latency": Level.WARNING}
    assert 150 <= found["mongodb.latency"].values["median_ms"] < 1000


@OF_REDIS
async def test_a_redis_slower_than_its_deadline_is_a_warning(container: Container, settings: Settings) -> None:
    """Pings that take more than half of CC_REDIS_TIMEOUT_MS: here the slow part is a proxy's, 80 ms."""
    await container.wait_for_init()
    url = settings.redis_url
    assert url is not None
    async with delayed(url.get_secret_value().removeprefix("unix://"), 0.08) as port:
        slow = Container(settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{port}")}))
        found = not_ok(await examine(slow))
        await slow.close()
    assert {check: finding.level for check, finding in found.items()} == {"redis.latency": Level.WARNING}
    assert found["redis.latency"].values["median_ms"] >= 80
    assert "CC_REDIS_TIMEOUT_MS" in found["redis.latency"].advice


@OF_REDIS
async def test_memory_and_policies_of_redis(container: Container) -> None:
    """A full Redis that evicts nothing is a warning; one that evicts, or has room, is not."""
    await container.wait_for_init()
    redis: Any = container.redis_service.client
    used = (await redis.info("memory"))["used_memory"]
    for policy, limit, level in (
        ("noeviction", 2 * used, None),
        ("noeviction", used + 1000, Level.WARNING),
        ("volatile-lru", used + 1000, Level.WARNING),
        ("allkeys-lru", used + 1000, None),
    ):
        async with configured_redis(container, maxmemory_policy=policy), configured_redis(container, maxmemory=limit):
            diagnosis = await examine(container)
        found = not_ok(diagnosis)
        assert {check: finding.level for check, finding in found.items()} == ({"redis.memory": level} if level else {})
        (memory,) = (finding for finding in diagnosis.findings if finding.check == "redis.memory")
        assert memory.values["policy"] == policy
        assert memory.values["maxmemory"] == limit


@OF_REDIS
async def test_the_append_only_file_is_told(container: Container) -> None:
    """Whether ids survive a restart is said, and is no fault either way."""
    for kept in ("yes", "no"):
        async with configured_redis(container, appendonly=kept):
            (found,) = (
                finding for finding in (await examine(container)).findings if finding.check == "redis.persistence"
            )
        assert (found.level, found.values) == (Level.OK, {"aof": kept == "yes"})


@OF_REDIS
async def test_a_replica_is_a_problem(container: Container) -> None:
    """A Redis that refuses writes is named as what it is."""
    await container.wait_for_init()
    redis: Any = container.redis_service.client
    await redis.replicaof("127.0.0.1", 1)
    try:
        found = not_ok(await examine(container))
    finally:
        await redis.replicaof("NO", "ONE")
    assert {check: finding.level for check, finding in found.items()} == {"redis.role": Level.PROBLEM}


@OF_REDIS
async def test_a_password_is_asked_for_and_never_shown(container: Container, settings: Settings) -> None:
    """A wrong one is a problem that says so, without the password."""
    await container.wait_for_init()
    url = settings.redis_url
    assert url is not None
    async with configured_redis(container, requirepass="hunter2"):
        wrong = SecretStr(url.get_secret_value().replace("unix://", "unix://:canary@"))
        other = Container(settings.model_copy(update={"redis_url": wrong}))
        diagnosis = await examine(other)
        await other.close()
    assert not_ok(diagnosis).keys() == {"redis"}
    assert "invalid username-password pair" in not_ok(diagnosis)["redis"].text
    assert "Correct user and password" in not_ok(diagnosis)["redis"].advice
    assert "canary" not in repr(diagnosis)


@OF_REDIS
async def test_a_user_of_redis_with_few_rights_is_enough(container: Container, settings: Settings) -> None:
    """One who may do what the services need, and no INFO and no TTL: unknown is said, and every finding is ok."""
    await container.wait_for_init()
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    redis: Any = container.redis_service.client
    commands = ("get", "set", "mget", "mset", "del", "exists", "scan", "unlink", "ping")
    rules = ("on", ">canary", f"~{settings.redis_key_prefix}*", *(f"+{command}" for command in commands))
    await redis.execute_command("ACL", "SETUSER", "few", *rules)
    url = settings.redis_url
    assert url is not None
    few = SecretStr(url.get_secret_value().replace("unix://", "unix://few:canary@"))
    other = Container(settings.model_copy(update={"redis_url": few}))
    try:
        diagnosis = await examine(other)
        report = await verify(other, fix=True)
    finally:
        await other.close()
        await redis.execute_command("ACL", "DELUSER", "few")
    assert not_ok(diagnosis) == {}
    said = {finding.check: finding for finding in diagnosis.findings}
    assert "unknown" in said["redis.version"].text
    assert said["cache"].values["right"] == 1
    assert "cache.expiry" not in said
    assert report.domains["signal"].right == 1
    assert "canary" not in repr(diagnosis)
