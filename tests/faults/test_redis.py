"""Faults of Redis: a latency fault at most, never an error; and a healthy Redis is never taken for a broken one."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from backtest_persist import Container, Settings, StoreUnavailableError
from backtest_persist.connections.circuit import CircuitBreaker
from tests.support.servers import configured_redis, suspended_redis
from tests.support.stopwatch import HANG, Stopwatch, slowness, timed

Warned = Callable[[], list[str]]

REDIS_SECONDS = 0.1
BY_ONE_DRIVER = pytest.mark.parametrize("driver", ["motor"], indirect=True)
"""For what is between the driver of Redis and the server."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The default deadline of Redis, which is asked for every id: what these tests are about."""
    return settings.model_copy(update={"redis_timeout_ms": int(REDIS_SECONDS * 1000), "id_memory": 0})


async def read_all(container: Container, count: int) -> tuple[int, float]:
    """Read one row `count` times at once; returns how many of the reads the cache answered, and the longest time."""

    async def read() -> float:
        async with asyncio.timeout(HANG):
            row, seconds = await timed(container.signal_db_service.find_by_context("s", "t", "e"))
        assert row is not None
        return seconds

    before = container.signal_db_service.stats.hits
    longest = max(await asyncio.gather(*(read() for _ in range(count))))
    return container.signal_db_service.stats.hits - before, longest


@BY_ONE_DRIVER
async def test_a_healthy_redis_answers_every_one_of_a_burst(settings: Settings, warned: Warned) -> None:
    """Waiting for one of our own connections, or for a busy event loop, is no fault of Redis."""
    async with Container(
        settings.model_copy(update={"redis_timeout_ms": 300, "redis_max_connections": 2})
    ) as container:
        await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
        assert (await read_all(container, 2000))[0] == 2000
        reading = asyncio.create_task(read_all(container, 1))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251  # the strategy computes something
        assert (await reading)[0] == 1
        started = time.monotonic()
        while time.monotonic() - started < 0.6:  # a burst of twice the deadline
            ids = (container.signal_cache_service.get_signal_id("s", "t", "e") for _ in range(10_000))
            assert len(set(await asyncio.gather(*ids))) == 1
        assert warned() == []


async def test_a_stopped_redis_costs_one_deadline(container: Container, warned: Warned) -> None:
    """The first operation waits for the deadline, then Redis is skipped, by concurrent ones as well; it comes back."""
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    async with suspended_redis(container):
        hits, longest = await read_all(container, 1)
        assert (hits, longest < REDIS_SECONDS + 0.15 * slowness()) == (0, True)
        (hits, _), seconds = await timed(read_all(container, 100))
        assert (hits, container.signal_db_service.stats.hits, seconds < slowness()) == (0, 0, True)
        with pytest.raises(StoreUnavailableError, match="CC_REDIS_TIMEOUT_MS"):
            await container.signal_cache_service.get_signal_id("s", "t", "e")
    assert warned() == ["redis.down"]
    async with asyncio.timeout(HANG):
        while (await read_all(container, 1))[0] == 0:
            await asyncio.sleep(0.05)


async def test_a_burst_that_meets_a_stopped_redis_pays_once(container: Container, warned: Warned) -> None:
    """Callers that queue for a connection do not wait for one deadline after another."""
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    await container.signal_db_service.find_by_context("s", "t", "e")
    async with suspended_redis(container):
        hits, longest = await read_all(container, 200)
        assert hits == 0
        assert longest < 1.5 * slowness()
        failing = [container.signal_cache_service.get_signal_id("s", "t", "e") for _ in range(100)]
        errors, seconds = await timed(asyncio.gather(*failing, return_exceptions=True))
        assert ({type(error) for error in errors}, seconds < 1.5 * slowness()) == ({StoreUnavailableError}, True)
    assert warned() == ["redis.down"]


@BY_ONE_DRIVER
async def test_one_caller_probes(container: Container) -> None:
    """After the pause one operation asks Redis and the others go on without."""
    redis = container.redis_service
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    async with suspended_redis(container):
        await read_all(container, 1)
        await asyncio.sleep(CircuitBreaker.FIRST_PAUSE_SECONDS)
        asked = 0

        async def ask() -> None:
            nonlocal asked
            asked += 1
            await container.signal_cache_service.get_signal_id("s", "t", "e")

        await asyncio.gather(*(redis.attempt("GET", ask, None) for _ in range(100)))
        assert asked == 1


@BY_ONE_DRIVER
@pytest.mark.parametrize(("seconds", "probes"), [(3, 3), pytest.param(10, 5, marks=pytest.mark.soak)])
async def test_a_long_outage_costs_a_deadline_for_each_probe(
    container: Container, warned: Warned, monkeypatch: pytest.MonkeyPatch, seconds: float, probes: int
) -> None:
    """While Redis is suspended it is asked at first, and then after pauses of 0.5, 1, 2 and 4 seconds."""
    db, redis = container.signal_db_service, container.redis_service
    await db.upsert("s", "t", "e", {"n": 0})
    asked, command = 0, redis.command

    def count(operation: str) -> Any:
        nonlocal asked
        asked += 1
        return command(operation)

    monkeypatch.setattr(redis, "command", count)
    times: list[float] = []
    async with suspended_redis(container), asyncio.timeout(seconds + HANG):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            row, wrote = await timed(db.upsert("s", "t", "e", {"n": len(times)}))
            found, read = await timed(db.find_by_context("s", "t", "e"))
            assert found == row
            times += [wrote, read]
            await asyncio.sleep(0.01)
    assert 2 <= asked <= probes
    assert max(times) < REDIS_SECONDS + 0.15 * slowness()
    assert warned() == ["redis.down"]


@BY_ONE_DRIVER
@pytest.mark.parametrize("options", [{"maxmemory": 1}, {"min_replicas_to_write": 1}])
async def test_a_redis_that_refuses_writes_is_reported_once(
    container: Container, warned: Warned, options: dict[str, Any]
) -> None:
    """GETs that are answered do not hide that every SET is refused; an answer is no reason to skip Redis."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 0})
    for outage in (1, 2):
        async with configured_redis(container, **options):
            for n in range(20):
                await db.upsert("s", "t", str(n), {"n": n})
                assert (await db.find_by_context("s", "t", "e")) is not None
            assert warned() == ["redis.refuses"] * outage
            assert (await read_all(container, 10))[0] == 10
        await db.upsert("s", "t", "e", {"n": 1})


@BY_ONE_DRIVER
async def test_a_redis_that_wants_a_password_is_reported_once(
    container: Container, settings: Settings, warned: Warned
) -> None:
    """No or a wrong password is a miss, reported once for reads and once for writes, and not a fault to wait for."""
    async with configured_redis(container, requirepass="hunter2"):
        for password in ("", "wrong"):
            url = settings.redis_url
            assert url is not None
            other = url.get_secret_value().replace("unix://", f"unix://:{password}@" if password else "unix://")
            async with Container(settings.model_copy(update={"redis_url": type(url)(other)})) as degraded:
                with Stopwatch() as watch:
                    for n in range(50):
                        await degraded.signal_db_service.upsert("s", "t", "e", {"n": n})
                        assert await degraded.signal_db_service.find_by_context("s", "t", "e") is not None
                assert watch.seconds < 5 * slowness()
    assert warned() == ["redis.refuses"] * 4


@BY_ONE_DRIVER
@pytest.mark.parametrize(
    "poison", ["junk", "another document", "gone", "binary", "a list", "a megabyte"], ids=lambda kind: kind
)
async def test_a_poisoned_entry_is_never_believed_and_put_right(
    container: Container, warned: Warned, poison: str
) -> None:
    """Alone and in company the right document is read, and the entry leads to it afterwards."""
    redis: Any = container.redis_service.client
    db, cache = container.signal_db_service, container.signal_cache_service
    rows = [await db.upsert("s", "t", f"e{n}", {"n": n}) for n in range(3)]
    key = f"{container.redis_service.key_prefix}{cache.connection_key}:e1:t:s"
    assert await redis.get(key) == rows[1].id.encode()
    values = {
        "junk": "x" * 24,
        "another document": rows[0].id,
        "gone": "0" * 24,
        "binary": b"\xff\xfe\x00",
        "a megabyte": "a" * 2**20,
    }
    for company in (1, 3):
        await redis.delete(key)
        await (redis.rpush(key, rows[1].id) if poison == "a list" else redis.set(key, values[poison]))
        found = await asyncio.gather(*(db.find_by_context("s", "t", f"e{n}") for n in (1, 0, 2)[:company]))
        assert found == [rows[1], rows[0], rows[2]][:company]
        assert await redis.get(key) == rows[1].id.encode()
    assert set(warned()) <= {"redis.refuses"}
