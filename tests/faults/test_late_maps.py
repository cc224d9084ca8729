"""Writes to a `BaseMap` that time out while they are being sent: a later write is never undone by them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from backtest_persist import BaseMap, Container, Settings, StoreUnavailableError, base_map
from tests.support.proxy import redis_proxy
from tests.support.servers import PrivateRedis, suspended

OLD = "old" * 3_000_000
"""Too much for the buffers of the system between two processes."""


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """Start a redis-server for one test."""
    redis = PrivateRedis(tmp_path)
    await redis.start()
    yield redis
    await redis.kill()


WRITES: dict[str, Callable[[BaseMap], Awaitable[None]]] = {
    "set": lambda values: values.set("k", OLD),
    "set_many": lambda values: values.set_many([("k", OLD), ("l", OLD)]),
}


@pytest.mark.parametrize("given", [False, True], ids=["own client", "client that was given"])
@pytest.mark.parametrize("ttl", [-1, 60])
async def test_a_write_that_timed_out_does_not_arrive_later(redis: PrivateRedis, ttl: int, *, given: bool) -> None:
    """Neither one whose caller had a deadline of its own: what Redis has not received by then is dropped."""
    settings = Settings(redis_url=SecretStr(f"unix://{redis.socket}"), redis_timeout_ms=300)
    client = Redis(unix_socket_path=str(redis.socket)) if given else None
    container = Container(settings, redis_client=client)
    values = base_map("values", ttl)(container.redis_service)
    for write in WRITES.values():
        for impatient in (False, True):
            await values.set("k", "first")
            async with suspended(redis.pid):
                with pytest.raises(TimeoutError if impatient else StoreUnavailableError):
                    async with asyncio.timeout(0.1 if impatient else None):
                        await write(values)
            await values.set("k", "new")
            await asyncio.sleep(0.2)
            assert await values.get("k") == "new"
            with suppress(StoreUnavailableError):
                await values.delete("l")
    await container.close()
    if client is not None:
        await client.aclose()


@pytest.mark.parametrize("driver", ["motor"])
async def test_a_write_that_the_network_holds_back_does_not_arrive_later(settings: Settings) -> None:
    """Redis closes the connection by which it would come before anything later is sent."""
    async with redis_proxy(settings.model_copy(update={"redis_timeout_ms": 300})) as (proxy, through):
        container = Container(through)
        values = base_map("values", 60)(container.redis_service)
        for write in (values.set("k", "zombie"), values.set_many([("k", "zombie"), ("l", "1")]), values.delete("k")):
            await values.set("k", "first")
            proxy.hold_back = b"DEL" if write.__name__ == "delete" else b"zombie"
            with pytest.raises(StoreUnavailableError):
                await write
            proxy.hold_back = b""
            await values.set("k", "later")
            proxy.released.set()
            await asyncio.sleep(0.1)
            assert await values.get("k") == "later"
            proxy.released.clear()
            proxy.is_holding.clear()
        await container.close()
