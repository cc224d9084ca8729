"""`rebuild`: the ids of all documents, or of those of named domains, and nothing else."""

from typing import Any

import pytest

from backtest_persist import Container, Settings, SettingsError
from backtest_persist.operations import rebuild
from tests.support.cases import CASES
from tests.support.damage import write_unrelated_keys
from tests.support.documents import fill, key_of, keys


async def test_rebuild_fills_redis_and_leaves_other_keys_alone(container: Container, settings: Settings) -> None:
    """A missing, malformed or list-valued key becomes the right id; other keys stay; a second run changes nothing."""
    await fill(container, 3)
    await write_unrelated_keys(container)
    right = await keys(settings)
    redis: Any = container.redis_service.client
    for case in CASES:
        await redis.delete(key_of(container, case, 0), key_of(container, case, 1))
        await redis.rpush(key_of(container, case, 1), "a", "list")
        await redis.set(key_of(container, case, 2), "junk", ex=1000)
    for _ in range(2):
        assert (await rebuild(container)).domains == {case.domain: 3 for case in CASES}
        assert await keys(settings) == right


async def test_rebuild_of_named_domains_leaves_the_others(container: Container, settings: Settings) -> None:
    """Only those are filled; a name that is none is a SettingsError, and nothing is written."""
    await fill(container)
    for case in CASES:
        cache: Any = getattr(container, f"{case.domain}_cache_service")
        await cache.clear()
    with pytest.raises(SettingsError, match="no domain nope; the domains are signal, schedule"):
        await rebuild(container, domains=["signal", "nope"])
    assert await keys(settings) == {}
    assert (await rebuild(container, domains=["signal", "risk"])).domains == {"risk": 1, "signal": 1}
    assert len(await keys(settings)) == 2
