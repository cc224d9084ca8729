"""A node of a Redis Cluster, or a Sentinel, in the place of a Redis: told at once and once, and never an error."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from backtest_persist import Container, ErrorReason, Settings, StoreUnavailableError, base_map
from backtest_persist.operations import Level, examine
from tests.support.diagnoses import not_ok
from tests.support.servers import PrivateRedis, free_ports

SAID = {"cluster": "is a node of a Redis Cluster", "sentinel": "is a Sentinel, which stores nothing"}


@pytest.fixture(scope="session")
def driver() -> str:
    """One driver: these tests are about Redis."""
    return "motor"


@pytest.fixture(params=SAID)
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """Start a node that serves half of the keys, or a Sentinel."""
    is_cluster = request.param == "cluster"
    redis = PrivateRedis.cluster_node(tmp_path) if is_cluster else PrivateRedis.sentinel(tmp_path)
    await redis.start()
    if is_cluster:
        await redis.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        await redis.command("CLUSTER", "ADDSLOTS", *range(8192))
    yield redis
    await redis.kill()


@pytest.mark.parametrize("given", [False, True], ids=["url", "client that was given"])
async def test_it_is_told_once_and_costs_no_error(
    settings: Settings,
    redis: PrivateRedis,
    caplog: pytest.LogCaptureFixture,
    warned: Callable[[], list[str]],
    request: pytest.FixtureRequest,
    *,
    given: bool,
) -> None:
    """MongoDB alone serves, with one line in the log; a map raises `StoreUnavailableError`, and the doctor sees it."""
    said = SAID[request.node.callspec.params["redis"]]
    settings = settings.model_copy(update={"redis_url": SecretStr(f"unix://{redis.socket}")})
    client = Redis(unix_socket_path=str(redis.socket)) if given else None
    async with Container(settings, redis_client=client) as container:
        db = container.signal_db_service
        for n in range(100):
            row = await db.upsert("s", "t", f"e{n}", {"n": n})
            assert await db.find_by_context("s", "t", f"e{n}") == row
        assert warned() == ["redis.down"]
        assert said in caplog.text
        values = base_map("values", -1)(container.redis_service)
        for call in (lambda: values.set("a", "1"), lambda: values.get("b"), container.redis_service.ping):
            with pytest.raises(StoreUnavailableError, match=said) as caught:
                await call()
            error = caught.value
            assert (error.reason, error.retryable, error.server) == (ErrorReason.UNSUPPORTED, False, "Redis")
            assert error.setting == (None if given else "CC_REDIS_URL")
        problems = not_ok(await examine(container))
        assert {check: finding.level for check, finding in problems.items()} == {"redis.mode": Level.PROBLEM}
        assert said in problems["redis.mode"].text
    if client is not None:
        await client.aclose()


def silent(hello: object) -> dict[str, str]:
    """Tell nothing of a server."""
    return {}


async def test_a_cluster_that_does_not_say_so_is_known_by_its_answers(
    settings: Settings, tmp_path: Path, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in front of it, or an old Redis: the first refusal of a key decides, though other keys are served."""
    redis = PrivateRedis.cluster_node(tmp_path)
    await redis.start()
    await redis.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    await redis.command("CLUSTER", "ADDSLOTS", *range(8192))
    monkeypatch.setattr("backtest_persist.connections.redis_connection.hello_facts", silent)
    settings = settings.model_copy(update={"redis_url": SecretStr(f"unix://{redis.socket}")})
    async with Container(settings) as container:
        db = container.signal_db_service
        for n in range(100):
            row = await db.upsert("s", "t", f"e{n}", {"n": n})
            assert await db.find_by_context("s", "t", f"e{n}") == row
        assert warned() == ["redis.down"]
        with pytest.raises(StoreUnavailableError, match=SAID["cluster"]):
            await base_map("values", -1)(container.redis_service).set("a", "1")
    await redis.kill()


async def test_a_client_that_asks_sentinels_works(settings: Settings, tmp_path: Path) -> None:
    """As the message on a Sentinel URL says: ids are set and found in the Redis that a Sentinel names."""
    port, sentinel_port = free_ports()
    master = PrivateRedis(tmp_path, "--port", str(port), "--bind", "127.0.0.1")
    sentinel = PrivateRedis.sentinel(tmp_path / "sentinel", port=sentinel_port, master_port=port)
    try:
        await master.start()
        await sentinel.start()
        sentinels: Any = Sentinel([("127.0.0.1", sentinel_port)])
        client = sentinels.master_for("mymaster")
        async with Container(settings, redis_client=client) as container:
            row = await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
            assert await container.signal_db_service.find_by_context("s", "t", "e") == row
            assert container.signal_db_service.stats.hits == 1
            assert await container.signal_cache_service.get_signal_id("s", "t", "e") == row.id
        await client.aclose()
        for asked in sentinels.sentinels:
            await asked.aclose()
    finally:
        for server in (master, sentinel):
            await server.kill()
