"""Outages of Redis while there is work to do: nothing but time is lost, and not much of that."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import Container, Settings
from tests.support.load import under_load
from tests.support.servers import PrivateRedis, wait_until
from tests.support.stopwatch import HANG, slowness, timed

REDIS_SECONDS = 0.1
MONGO_SECONDS = 5

Warned = Callable[[], list[str]]


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about Redis."""
    return "motor"


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """A redis-server for this test."""
    redis = PrivateRedis(tmp_path)
    await redis.start()
    yield redis
    await redis.kill()


@pytest.fixture
def settings(settings: Settings, redis: PrivateRedis) -> Settings:
    """The default deadlines, and the redis-server of the test, which is asked for every id."""
    update = {"redis_url": SecretStr(f"unix://{redis.socket}"), "redis_timeout_ms": 100, "mongo_timeout_ms": 5000}
    return settings.model_copy(update={**update, "id_memory": 0})


async def write_and_read(container: Container, count: int) -> float:
    """Write and read rows, ten at a time; returns how many seconds the longest operation took."""
    db = container.signal_db_service
    longest = 0.0

    async def one(n: int) -> None:
        nonlocal longest
        written, wrote = await timed(db.upsert("s", "t", f"e{n}", {"n": n}))
        found, read = await timed(db.find_by_context("s", "t", f"e{n}"))
        longest = max(longest, wrote, read)
        assert written == found
        assert found.payload == {"n": n}

    for first in range(0, count, 10):
        await asyncio.gather(*(one(n) for n in range(first, first + 10)))
    return longest


async def cache_is_used(container: Container, seconds: float) -> None:
    """Wait until the cache answers a read."""
    db = container.signal_db_service
    hits = db.stats.hits
    async with asyncio.timeout(seconds):
        while db.stats.hits == hits:
            await db.find_by_context("s", "t", "e0")
            await asyncio.sleep(0.02)


async def test_without_redis_from_the_start_everything_works(
    settings: Settings, redis: PrivateRedis, warned: Warned
) -> None:
    """A container opens without Redis, and 1,000 operations succeed at 60 % of the speed with Redis or better."""
    nowhere = SecretStr(f"unix://{redis.directory}/nowhere.sock")
    degraded = settings.model_copy(update={"redis_url": nowhere})
    with_redis, without_redis = list[float](), list[float]()
    async with Container(settings) as usual, Container(degraded) as container:
        for _ in range(5):  # in turns, as the machine has other work at times
            for seconds, each in ((with_redis, usual), (without_redis, container)):
                longest, needed = await timed(write_and_read(each, 100))
                assert longest < MONGO_SECONDS + 0.25
                seconds.append(needed)
    assert warned() == ["redis.down"]
    assert min(without_redis) < min(with_redis) / 0.6 + 0.05
    async with Container(settings) as witness:
        rows = await witness.signal_db_service.find_all()
        assert sorted(row.payload["n"] for row in rows if row.payload) == list(range(100))


async def test_redis_killed_under_load_is_no_error(
    settings: Settings, container: Container, redis: PrivateRedis
) -> None:
    """Redis dies without a goodbye and comes back empty: no operation fails, and it is in use again within 6 s."""
    async with under_load(settings, container) as load:
        for _ in range(2):
            await redis.kill()
            await load.wait_for_successes()
            await redis.start()
            await cache_is_used(container, 6)
            await load.wait_for_successes()
        assert load.errors == []
        assert await redis.command("DBSIZE") > 0


async def test_a_paused_redis_costs_one_deadline(container: Container, redis: PrivateRedis, warned: Warned) -> None:
    """CLIENT PAUSE: the server reads and answers nothing; the first operation waits, those after it do not."""
    await container.signal_db_service.upsert("s", "t", "e0", {"n": 0})
    await redis.command("CLIENT", "PAUSE", 2000, "ALL")
    await _costs_one_deadline(container)
    assert warned() == ["redis.down"]
    await cache_is_used(container, 6)


async def test_a_sleeping_redis_costs_one_deadline(container: Container, redis: PrivateRedis, warned: Warned) -> None:
    """DEBUG SLEEP: the server does not even accept connections; the first operation waits, those after it do not."""
    await container.signal_db_service.upsert("s", "t", "e0", {"n": 0})
    sleeping = asyncio.create_task(redis.command("DEBUG", "SLEEP", 3))
    await wait_until(partial(_is_silent, redis))
    await _costs_one_deadline(container)
    assert not sleeping.done()
    assert warned() == ["redis.down"]
    await sleeping
    await cache_is_used(container, 6)


async def _is_silent(redis: PrivateRedis) -> bool:
    try:
        async with asyncio.timeout(0.5):  # less would also end on a busy machine, before the server sleeps
            return not await redis.answers()
    except TimeoutError:
        return True


async def _costs_one_deadline(container: Container) -> None:
    db = container.signal_db_service
    times: list[float] = []
    for n in range(5):
        async with asyncio.timeout(HANG):
            row, seconds = await timed(db.find_by_context("s", "t", "e0"))
        times.append(seconds)
        assert row is not None, n
        assert row.payload == {"n": 0}
    assert times[0] < REDIS_SECONDS + 0.15 * slowness(), times
    assert max(times[1:]) < REDIS_SECONDS * 0.9, times
    assert db.stats.hits == 0


async def test_a_redis_that_evicts_is_never_wrong(settings: Settings, redis: PrivateRedis, warned: Warned) -> None:
    """A Redis with room for some of the ids forgets the others; every read is right, and nothing is reported."""
    memory = int((await redis.command("INFO", "memory"))["used_memory"])
    await redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await redis.command("CONFIG", "SET", "maxmemory", memory + 300_000)
    roomy = settings.model_copy(update={"redis_timeout_ms": 5000})
    async with Container(roomy) as container:
        await write_and_read(container, 3000)
        reads = [container.signal_db_service.find_by_context("s", "t", f"e{n}") for n in range(3000)]
        rows = await asyncio.gather(*reads)
        assert [row and row.payload for row in rows] == [{"n": n} for n in range(3000)]
        assert await container.signal_db_service.count() == 3000
    assert int((await redis.command("INFO", "stats"))["evicted_keys"]) > 100
    assert warned() == []


async def test_a_redis_without_its_master_is_reported_once(
    container: Container, redis: PrivateRedis, warned: Warned
) -> None:
    """MASTERDOWN for every read and READONLY for every write: no stalls, one report for each, then it is used again."""
    await container.signal_db_service.upsert("s", "t", "e0", {"n": 0})
    await redis.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    await redis.command("REPLICAOF", "127.0.0.1", 1)
    longest, seconds = await timed(write_and_read(container, 100))
    assert (longest < slowness(), seconds < 5 * slowness()) == (True, True)
    assert warned() == ["redis.refuses"] * 2
    assert container.signal_db_service.stats.hits == 0
    await redis.command("REPLICAOF", "NO", "ONE")
    await cache_is_used(container, 6)


async def test_a_redis_that_is_loading_is_reported_once(
    settings: Settings, redis: PrivateRedis, warned: Warned
) -> None:
    """A server that reads its file answers LOADING to everything: no stalls, and it is used when it has read it."""
    await redis.command("CONFIG", "SET", "rdbcompression", "no")
    for n in range(90):  # it looks at requests after every 2 MB
        await redis.command("SET", f"filler{n}", "x" * 1_000_000)
    await redis.command("SAVE")
    await redis.kill()
    slow = PrivateRedis(redis.directory, "--key-load-delay", "30000")
    patient = settings.model_copy(update={"redis_timeout_ms": 5000})  # it is silent between its looks
    await slow.start(answering=False)
    try:
        async with asyncio.timeout(HANG):
            while not await _is_loading(slow):
                await asyncio.sleep(0.01)
        async with Container(patient) as container:
            longest = await write_and_read(container, 10)
            assert await _is_loading(slow)
            assert longest < slowness()
            assert warned() == ["redis.refuses"] * 2  # of reads and of writes
            await cache_is_used(container, 10)
    finally:
        await slow.kill()


async def _is_loading(redis: PrivateRedis) -> bool:
    reader, writer = await asyncio.open_unix_connection(redis.socket)
    writer.write(b"PING\r\n")
    answer = await reader.readline()
    writer.close()
    return answer.startswith(b"-LOADING")


async def test_ids_that_are_forgotten_or_recycled_never_mislead(
    settings: Settings, container: Container, redis: PrivateRedis
) -> None:
    """Redis is flushed at random while another program deletes documents and gives their ids to other contexts."""
    db = container.signal_db_service
    choice = random.Random(7)
    done = asyncio.Event()
    await asyncio.gather(*(db.upsert("s", "t", f"e{n}", {"n": n}) for n in range(8)))
    uri = settings.mongo_connection_string.get_secret_value()

    async def flush() -> int:
        flushes = 0
        while not done.is_set():
            await redis.flush()
            flushes += 1
            await asyncio.sleep(choice.random() * 0.02)
        return flushes

    async def recreate(first: int, second: int, collection: Any) -> int:
        """Two documents change their ids, again and again; both are read in between."""
        names = [f"e{first}", f"e{second}"]
        ids = [(await collection.find_one({"exchangeName": name}))["_id"] for name in names]
        wrong = 0
        for number in range(60):
            documents = [await collection.find_one({"exchangeName": name}) for name in names]
            await collection.delete_many({"exchangeName": {"$in": names}})
            if number % 5 == 0:
                gone = await asyncio.gather(*(db.find_by_context("s", "t", name) for name in names))
                wrong += gone != [None, None]
            ids.reverse()
            for document, id in zip(documents, ids, strict=True):
                document |= {"_id": id, "payload": {"n": f"{document['exchangeName']} {number}"}}
            await collection.insert_many(documents)
            await db.find_by_context("s", "t", names[0])
            rows = await asyncio.gather(*(db.find_by_context("s", "t", name) for name in names))
            wrong += [row and row.payload for row in rows] != [{"n": f"{name} {number}"} for name in names]
        return wrong

    async with AsyncMongoClient[dict[str, Any]](uri) as other:
        collection = other.get_default_database()["signal-items"]
        flushing = asyncio.create_task(flush())
        wrong = await asyncio.gather(*(recreate(n, n + 1, collection) for n in range(0, 8, 2)))
        done.set()
        assert wrong == [0] * 4
        assert await flushing > 10
    assert db.stats.hits > 0
    assert await db.count() == 8
