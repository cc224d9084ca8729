"""The ids that a process knows, while Redis loses its own: nobody reads anything wrong, and Redis gets them back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pydantic import SecretStr
from redis.asyncio import Redis

from backtest_persist import Container, PersistSignalInstance, Settings
from backtest_persist.operations import rebuild, verify
from tests.support.servers import PrivateRedis, configured_redis, suspended_redis, wait_until

NAMES = ["s0", "s1", "s2"]


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about Redis."""
    return "motor"


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """A redis-server for one test."""
    redis = PrivateRedis(tmp_path)
    await redis.start()
    yield redis
    await redis.kill()


@pytest.fixture
def settings(settings: Settings, redis: PrivateRedis) -> Settings:
    """Settings that lead to that redis-server, with the default deadline."""
    update = {"redis_url": SecretStr(f"unix://{redis.socket}"), "redis_timeout_ms": 100}
    return settings.model_copy(update=update)


async def write_alone(container: Container) -> None:
    """Write the contexts one after another."""
    for name in NAMES:
        await PersistSignalInstance(name, "t", "e", ioc=container).write_signal_data({"n": 1})


async def write_together(container: Container) -> None:
    """Write the contexts in one bulk."""
    adapters = (PersistSignalInstance(name, "t", "e", ioc=container) for name in NAMES)
    await asyncio.gather(*(adapter.write_signal_data({"n": 1}) for adapter in adapters))


async def ids_in_redis(container: Container, redis: PrivateRedis) -> list[str | None]:
    """Return what Redis holds for the contexts, asked for by another client."""
    keys = [f"{container.settings.redis_key_prefix}signal_cache:e:t:{name}" for name in NAMES]
    return [None if id is None else id.decode() for id in await redis.command("MGET", *keys)]


async def ids_in_mongo(container: Container) -> list[str]:
    """Return the ids of the documents."""
    rows = await container.signal_db_service.find_all(sort=[("symbol", 1)])
    return [row.id for row in rows]


async def restart_empty(redis: PrivateRedis) -> None:
    """Kill Redis, and start it again without its data."""
    await redis.kill()
    await redis.start()


async def close_and_flush(redis: PrivateRedis) -> None:
    """Close all connections, as a proxy does that leads to another server from now on, which is empty."""
    await redis.command("CLIENT", "KILL", "TYPE", "normal")
    await redis.flush()


LOSSES: dict[str, Callable[[PrivateRedis], Awaitable[None]]] = {"restarted": restart_empty, "moved": close_and_flush}
WRITES: dict[str, Callable[[Container], Awaitable[None]]] = {"alone": write_alone, "together": write_together}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_redis_is_told_again_after_its_connections_were_lost(
    container: Container,
    redis: PrivateRedis,
    lose: Callable[[PrivateRedis], Awaitable[None]],
    write: Callable[[Container], Awaitable[None]],
) -> None:
    """The next write of a known context does that, though nothing was sent to Redis meanwhile; a later one does not."""
    await write(container)
    await write(container)
    ids = await ids_in_mongo(container)
    assert await ids_in_redis(container, redis) == ids
    await lose(redis)
    await write(container)
    assert await ids_in_redis(container, redis) == ids
    before = await commands(redis)
    await write(container)
    assert await commands(redis) == before
    assert await ids_in_mongo(container) == ids


async def commands(redis: PrivateRedis) -> dict[str, Any]:
    """Return how often Redis was told of ids, or asked for them one by one."""
    statistics = await redis.command("INFO", "commandstats")
    return {name: statistics.get(f"cmdstat_{name}", {}).get("calls") for name in ("get", "set", "mset")}


async def test_an_injected_client_notices_a_loss_with_its_next_command(settings: Settings, redis: PrivateRedis) -> None:
    """Its pool connects anew behind our back; from then on the next write of each context tells Redis its id again."""
    client: Any = Redis(unix_socket_path=str(redis.socket))
    async with client, aclosing(Container(settings, redis_client=client)) as container:
        await write_alone(container)
        await restart_empty(redis)
        await write_alone(container)
        assert await container.signal_db_service.find_by_context("unknown", "t", "e") is None
        await write_alone(container)
        assert await ids_in_redis(container, redis) == await ids_in_mongo(container)


async def test_redis_is_told_after_an_outage_of_what_was_written_meanwhile(
    container: Container, redis: PrivateRedis, warned: Callable[[], list[str]]
) -> None:
    """A known id is read without Redis; what Redis did not take, and what it had before, is told when it is back."""
    db = container.signal_db_service
    await write_alone(container)
    async with suspended_redis(container):
        assert await db.find_by_context("unknown", "t", "e") is None
        for _ in range(2):
            await write_alone(container)
            assert [(await db.find_by_context(name, "t", "e")) is not None for name in NAMES] == [True] * 3
        assert db.stats.hits == 6
    assert warned() == ["redis.down"]
    await redis.flush()

    async def is_told() -> bool:
        await write_alone(container)
        return await ids_in_redis(container, redis) == await ids_in_mongo(container)

    await wait_until(is_told, 6)


async def test_redis_is_told_again_after_it_has_refused_a_command(container: Container, redis: PrivateRedis) -> None:
    """A refusal, as of a master that has become a replica, is a sign that it may have lost what it held."""
    await write_alone(container)
    await redis.flush()
    await write_alone(container)
    assert await ids_in_redis(container, redis) == [None] * 3
    async with configured_redis(container, min_replicas_to_write=1):
        await PersistSignalInstance("another", "t", "e", ioc=container).write_signal_data({"n": 1})
    await write_alone(container)
    ids = {row.symbol: row.id for row in await container.signal_db_service.find_all()}
    assert await ids_in_redis(container, redis) == [ids[name] for name in NAMES]


async def test_what_redis_loses_without_a_sign_is_only_a_miss_for_others(
    container: Container, settings: Settings, redis: PrivateRedis
) -> None:
    """After FLUSHALL this process goes on; `verify` names what is missing; others, or `rebuild`, put it back."""
    db = container.signal_db_service
    await write_alone(container)
    ids = await ids_in_mongo(container)
    await redis.flush()
    assert [row and row.id for row in [await db.find_by_context(name, "t", "e") for name in NAMES]] == ids
    assert (await verify(container)).domains["signal"].missing == 3
    async with aclosing(Container(settings)) as other:
        row = await other.signal_db_service.find_by_context(NAMES[0], "t", "e")
        assert row is not None
        assert await ids_in_redis(container, redis) == [row.id, None, None]
    await rebuild(container)
    assert await ids_in_redis(container, redis) == ids
    report = await verify(container)
    assert (report.domains["signal"].right, report.wrong) == (3, 0)


async def test_another_event_loop_trusts_redis_no_more_than_it_has_seen(
    container: Container, redis: PrivateRedis
) -> None:
    """It uses the ids that are known, and tells Redis, which nobody has watched since the other loop, once more."""
    await write_alone(container)
    await redis.flush()
    await asyncio.to_thread(lambda: asyncio.run(write_alone(container)))
    assert await ids_in_redis(container, redis) == await ids_in_mongo(container)


async def test_a_change_through_the_cache_service_is_not_hidden(container: Container, redis: PrivateRedis) -> None:
    """After `set`, `set_many`, `delete` and `clear` the next read asks Redis, and puts right what is wrong there."""
    db, cache = container.signal_db_service, container.signal_cache_service
    await write_alone(container)
    ids = await ids_in_mongo(container)
    keys = [f"e:t:{name}" for name in NAMES]
    for change in (
        cache.set(keys[0], "junk"),
        cache.set_many([(key, str(ObjectId())) for key in keys]),
        cache.delete(keys[1]),
        cache.clear(),
    ):
        await change
        assert await ids_in_redis(container, redis) != ids
        assert [row and row.id for row in [await db.find_by_context(name, "t", "e") for name in NAMES]] == ids
        assert await ids_in_redis(container, redis) == ids


async def test_threads_with_an_event_loop_each_share_what_is_known(settings: Settings) -> None:
    """While documents are deleted and written again, by others too, every read finds what MongoDB holds."""
    container = Container(settings.model_copy(update={"id_memory": 20}))
    db = container.signal_db_service

    async def work(number: int) -> None:
        for turn in range(60):
            mine, theirs = f"{number}-{turn % 10}", f"{(number + 1) % 3}-{turn % 10}"
            if turn % 7 == 6:
                await container.mongo_service.collection("signal-items").delete_one({"symbol": mine})
                assert await db.find_by_context(mine, "t", "e") is None
            row = await db.upsert(mine, "t", "e", {"n": turn})
            found, other = await asyncio.gather(*(db.find_by_context(name, "t", "e") for name in (mine, theirs)))
            assert found == row
            assert other is None or other.symbol == theirs

    def run(number: int) -> None:
        asyncio.run(work(number))

    await asyncio.gather(*(asyncio.to_thread(run, n) for n in range(3)))
    await container.close()
