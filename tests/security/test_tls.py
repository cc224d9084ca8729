"""TLS to both servers by the settings alone, and refused when anything is wrong."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from backtest_persist import Container, Settings, StoreUnavailableError
from tests.support.cases import CASES
from tests.support.containers import open_container
from tests.support.locked_servers import (
    LockedServers,
    replace_in_mongo_uri,
    replace_in_redis_url,
)
from tests.support.stopwatch import GRACE, Stopwatch

PROBLEMS = {
    "a CA that did not sign it": ("CERTIFICATE_VERIFY_FAILED.*name the CA"),
    "another host name": ("CERTIFICATE_VERIFY_FAILED.*under a name that is in its certificate"),
    "no TLS": ("a server that wants TLS"),
}


def wrong_mongo(settings: Settings, problem: str, locked: LockedServers) -> Settings:
    """The same settings with something wrong in the connection string, and a deadline that is short."""
    settings = settings.model_copy(update={"mongo_timeout_ms": 3000})
    return {
        "a CA that did not sign it": replace_in_mongo_uri(settings, str(locked.ca), str(locked.other_ca)),
        "another host name": replace_in_mongo_uri(settings, "@localhost:", "@127.0.0.1:"),
        "no TLS": replace_in_mongo_uri(settings, f"&tls=true&tlsCAFile={locked.ca}", ""),
    }[problem]


def wrong_redis(settings: Settings, problem: str, locked: LockedServers) -> Settings:
    """The same settings with something wrong in the Redis URL."""
    settings = settings.model_copy(update={"id_memory": 0})  # which answers as well as Redis
    plain = replace_in_redis_url(settings, f"?ssl_ca_certs={locked.ca}", "")
    return {
        "a CA that did not sign it": replace_in_redis_url(settings, str(locked.ca), str(locked.other_ca)),
        "another host name": replace_in_redis_url(settings, "@localhost:", "@127.0.0.1:"),
        "no TLS": replace_in_redis_url(plain, "rediss://", "redis://"),
    }[problem]


async def test_every_domain_works_over_tls(container: Container) -> None:
    """With the right CA a write and a read that the cache answers go through TLS."""
    for case in CASES:
        db: Any = getattr(container, f"{case.domain}_db_service")
        write = db.create if case.domain == "candle" else db.upsert
        row = await write(*(case.args[:-1] if case.domain == "candle" else case.args), *case.written)
        assert await db.find_by_context(*case.args) == row
        assert db.stats.hits == 1


@pytest.mark.parametrize("problem", PROBLEMS)
async def test_mongo_is_not_spoken_to(settings: Settings, locked: LockedServers, problem: str) -> None:
    """An operation is a StoreUnavailableError within its deadline of 3 s, and says what to do."""
    async with open_container(wrong_mongo(settings, problem, locked)) as container:
        with Stopwatch() as watch, pytest.raises(StoreUnavailableError, match=PROBLEMS[problem]):
            await container.signal_db_service.count()
        assert watch.seconds < 3 + GRACE


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
@pytest.mark.parametrize("problem", PROBLEMS)
async def test_redis_is_not_spoken_to(
    settings: Settings, locked: LockedServers, problem: str, warned: Callable[[], list[str]]
) -> None:
    """For a db service it is a cache that misses, reported once; a map says what to do, in bounded time."""
    async with open_container(wrong_redis(settings, problem, locked)) as container:
        db = container.signal_db_service
        started = time.monotonic()
        for n in range(20):
            row = await db.upsert("s", "t", str(n), {"n": n})
            assert await db.find_by_context("s", "t", str(n)) == row
        assert db.stats.hits == 0
        assert warned() == ["redis.down"]
        for operation in (container.redis_service.ping(), container.signal_cache_service.get("e:t:s")):
            with pytest.raises(StoreUnavailableError, match=PROBLEMS[problem]):
                await operation
        assert time.monotonic() - started < 10
