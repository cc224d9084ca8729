"""Idle connections that Redis has closed: the next command opens another one and does not fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from backtest_persist import Container, Settings, base_map
from tests.support.servers import PrivateRedis, wait_until

CONNECTIONS = 4


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about Redis."""
    return "motor"


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """Start a redis-server for one test."""
    redis = PrivateRedis(tmp_path)
    await redis.start()
    yield redis
    await redis.kill()


@pytest.fixture
def settings(settings: Settings, redis: PrivateRedis) -> Settings:
    """Return settings that lead to that redis-server, which is asked for every id."""
    return settings.model_copy(update={"redis_url": SecretStr(f"unix://{redis.socket}"), "id_memory": 0})


async def has_clients(redis: PrivateRedis, count: int) -> bool:
    """Return whether Redis has that many connections besides the one that asks."""
    clients = await redis.command("INFO", "clients")
    return clients["connected_clients"] == count + 1


async def kill_clients(redis: PrivateRedis) -> None:
    """Close all connections by CLIENT KILL."""
    assert await redis.command("CLIENT", "KILL", "TYPE", "normal") > 0


async def let_clients_time_out(redis: PrivateRedis) -> None:
    """Close all connections by the idle timeout of the server."""
    await redis.command("CONFIG", "SET", "timeout", 1)
    await wait_until(partial(has_clients, redis, 0), 10)
    await redis.command("CONFIG", "SET", "timeout", 0)


async def restart(redis: PrivateRedis) -> None:
    """Kill Redis, and start it again with its data."""
    await redis.command("SAVE")
    await redis.kill()
    await redis.start()


CLOSINGS: dict[str, Callable[[PrivateRedis], Awaitable[None]]] = {
    "killed": kill_clients,
    "idle": let_clients_time_out,
    "restarted": restart,
}


async def open_connections(container: Container) -> None:
    """Open several connections and leave them idle."""
    ids = (container.signal_cache_service.get_signal_id("nothing", "t", "e") for _ in range(CONNECTIONS))
    assert await asyncio.gather(*ids) == [None] * CONNECTIONS


@pytest.mark.parametrize("close", CLOSINGS.values(), ids=CLOSINGS)
async def test_the_first_commands_of_a_map_succeed(
    container: Container, redis: PrivateRedis, close: Callable[[PrivateRedis], Awaitable[None]]
) -> None:
    """Concurrent commands that each meet a closed connection succeed, single ones and several in one round trip."""
    prices = base_map("prices", 60)(container.redis_service)
    await prices.set("a", "1")
    await open_connections(container)
    await wait_until(partial(has_clients, redis, CONNECTIONS))
    await close(redis)
    answers = await asyncio.gather(
        prices.get("a"), prices.set("b", "2"), prices.set_many([("c", "3"), ("d", "4")]), prices.has("a")
    )
    assert answers == ["1", None, None, True]
    assert dict(await prices.to_array()) == {"a": "1", "b": "2", "c": "3", "d": "4"}


@pytest.mark.parametrize("close", CLOSINGS.values(), ids=CLOSINGS)
async def test_the_first_lookups_are_hits_and_the_first_ids_are_kept(
    settings: Settings, redis: PrivateRedis, close: Callable[[PrivateRedis], Awaitable[None]]
) -> None:
    """A closed connection costs a db service neither a hit nor an id that should have reached Redis."""
    async with Container(settings) as reader, Container(settings) as writer:
        db, states = reader.signal_db_service, writer.state_db_service
        row = await db.upsert("s", "t", "e", {"n": 1})
        await states.wait_for_init()
        await asyncio.gather(open_connections(reader), open_connections(writer))
        await wait_until(partial(has_clients, redis, 2 * CONNECTIONS))
        await close(redis)
        assert await asyncio.gather(*(db.find_by_context("s", "t", "e") for _ in range(10))) == [row] * 10
        state = await states.upsert("s", "b", {"n": 1}, 0)
        kept = await reader.state_cache_service.get_state_id("s", "b")
        assert (db.stats.hits, kept) == (10, state.id)
