"""BaseMap: ten methods over one namespace of a real Redis."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from backtest_persist import (
    BaseMap,
    Container,
    InvalidKeyError,
    InvalidPayloadError,
    Settings,
    SettingsError,
    base_map,
)
from backtest_persist.core.base_map import ITERATOR_BATCH_SIZE


@pytest.fixture
async def redis_only(settings: Settings) -> AsyncIterator[Container]:
    """A container whose MongoDB is never used."""
    container = Container(settings)
    yield container
    await container.close()


async def test_a_value_is_set_read_and_deleted(redis_only: Container) -> None:
    """set, get, has and delete agree; an absent key is None and deleting it does nothing."""
    prices = base_map("prices")(redis_only.redis_service)
    assert await prices.get("a") is None
    await prices.set("a", "1")
    await prices.set("ключ:%*?[]\\ 🚀\n", "välue")
    assert await prices.get("a") == "1"
    assert await prices.get("ключ:%*?[]\\ 🚀\n") == "välue"
    assert await prices.has("a") is True
    await prices.delete("a")
    await prices.delete("a")
    assert await prices.has("a") is False
    assert await prices.to_array() == [("ключ:%*?[]\\ 🚀\n", "välue")]


async def test_the_full_key_is_namespace_colon_key(redis_only: Container) -> None:
    """Another program finds the value under prefix + connection_key:key."""
    await base_map("prices")(redis_only.redis_service).set("a", "1")
    assert await redis_only.redis_service.client.get(redis_only.settings.redis_key_prefix + "prices:a") == b"1"


async def test_the_ttl_is_the_one_of_the_class(redis_only: Container) -> None:
    """The default is 300 seconds, -1 is no expiry, and a subclass keeps its namespace and ttl."""

    class Kept(base_map("kept", -1)):
        """A subclass, as the cache services are."""

    redis, prefix = redis_only.redis_service.client, redis_only.settings.redis_key_prefix
    await base_map("default")(redis_only.redis_service).set("a", "1")
    await base_map("short", 5)(redis_only.redis_service).set("a", "1")
    await Kept(redis_only.redis_service).set("a", "1")
    assert 295 <= await redis.ttl(f"{prefix}default:a") <= 300
    assert 1 <= await redis.ttl(f"{prefix}short:a") <= 5
    assert await redis.ttl(f"{prefix}kept:a") == -1
    assert (Kept.connection_key, Kept.ttl_expire_seconds) == ("kept", -1)


async def test_none_is_no_key_and_an_empty_key_is_an_error(redis_only: Container) -> None:
    """get(None) is None; an empty key, a NUL, or a value that is no text is refused."""
    prices = base_map("prices")(redis_only.redis_service)
    assert await prices.get(None) is None
    for key in ("", "a\0b", "\ud800"):
        with pytest.raises(InvalidKeyError):
            await prices.set(key, "1")
        with pytest.raises(InvalidKeyError):
            await prices.get(key)
    for value in (5, None, b"x", "\ud800"):
        with pytest.raises(InvalidPayloadError):
            await prices.set("a", value)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidPayloadError):
            await prices.set_many([*((f"k{n}", "1") for n in range(1_000)), ("a", value)])  # pyright: ignore[reportArgumentType]
    assert await prices.size() == 0


@pytest.mark.parametrize("name", [None, "", 5, "a\0b", "\ud800"])
def test_a_namespace_is_a_usable_name(name: Any) -> None:
    """A bad one is refused when the class is made."""
    with pytest.raises(InvalidKeyError, match="connection_key"):
        base_map(name)


@pytest.mark.parametrize("ttl", ["5", 1.5, True, [5]])
def test_a_ttl_is_an_int(ttl: Any) -> None:
    """However it is given, a bad one is refused when the class is made."""
    with pytest.raises(SettingsError, match="ttl_expire_seconds"):
        base_map("prices", ttl)
    with pytest.raises(SettingsError, match="ttl_expire_seconds"):

        class Prices(base_map("prices")):  # pyright: ignore[reportUnusedClass]
            ttl_expire_seconds = ttl


async def test_what_another_program_left_in_a_namespace_is_not_there_but_for_clear(redis_only: Container) -> None:
    """Lists, and names that `get` would refuse, are neither counted nor iterated over; `clear` removes them."""
    prices = base_map("prices")(redis_only.redis_service)
    redis: Any = redis_only.redis_service.client
    start = f"{redis_only.settings.redis_key_prefix}prices:".encode()
    await prices.set("a", "1")
    await redis.set(start + b"binary", b"\xff\x00")
    for name in (b"\xff\xfe", b"", b"a\0b"):
        await redis.set(start + name, "x")
    await redis.rpush(start + b"list", "x")
    pairs = await prices.to_array()
    assert sorted(key for key, _ in pairs) == sorted([key async for key in prices.keys()]) == ["a", "binary"]  # noqa: SIM118
    assert await prices.size() == len([value async for value in prices.values()]) == 2
    for key, value in pairs:
        assert await prices.get(key) == value
    await prices.clear()
    assert [name async for name in redis.scan_iter(match=start + b"*")] == []


@pytest.mark.parametrize("name", ["a*", "a?", "[ab]", "a\\", "a[", "*"])
async def test_glob_characters_in_a_namespace_match_only_themselves(redis_only: Container, name: str) -> None:
    """clear, size and iteration of `a*` do not touch `ab:`."""
    odd, neighbours = base_map(name), [base_map("ab"), base_map("a"), base_map("aa"), base_map("b")]
    for bound in (odd, *neighbours):
        await bound(redis_only.redis_service).set("k", bound.connection_key)
    assert await odd(redis_only.redis_service).to_array() == [("k", name)]
    await odd(redis_only.redis_service).clear()
    assert await odd(redis_only.redis_service).size() == 0
    assert [await other(redis_only.redis_service).size() for other in neighbours] == [1, 1, 1, 1]


async def test_iteration_sees_every_key_once(redis_only: Container) -> None:
    """iterate, keys, values, to_array and size agree on thousands of keys, each seen once, the prefix stripped."""
    prices = base_map("prices", -1)(redis_only.redis_service)
    expected = {f"key:{n}": str(n) for n in range(3_000)}
    await prices.set_many(list(expected.items()))
    assert len(expected) > 10 * ITERATOR_BATCH_SIZE
    pairs = [pair async for pair in prices.iterate()]
    assert len(pairs) == len(expected)
    assert dict(pairs) == expected
    assert sorted([key async for key in prices.keys()]) == sorted(expected)  # noqa: SIM118
    assert sorted([value async for value in prices.values()]) == sorted(expected.values())
    assert dict(await prices.to_array()) == expected
    assert await prices.size() == 3_000


async def test_no_key_comes_twice_when_redis_repeats_it(redis_only: Container) -> None:
    """SCAN may return a key again when the hash table shrinks under it; here it returns every batch twice."""

    class Repeating(base_map("repeating", -1)):
        """A map under which each batch comes again."""

        async def _scan(self, kind: str | None = None) -> AsyncIterator[list[bytes]]:
            async for batch in super()._scan(kind):
                yield batch
                yield batch[:1] * 2 + batch[1:]

    doubled = Repeating(redis_only.redis_service)
    await doubled.set_many([(f"k{n}", str(n)) for n in range(1_000)])
    assert sorted([key async for key in doubled.keys()]) == sorted(f"k{n}" for n in range(1_000))  # noqa: SIM118
    assert len(await doubled.to_array()) == 1_000
    assert await doubled.size() == 1_000
    await doubled.clear()
    assert await doubled.size() == 0


async def test_a_map_without_a_service_uses_the_process_wide_container(settings: Settings) -> None:
    """base_map(...)() works as soon as `setup` has run."""
    from backtest_persist import ioc, setup

    setup(settings)
    try:
        plain = base_map("plain")()
        await plain.set("a", "1")
        assert await plain.get("a") == "1"
        assert issubclass(type(plain), BaseMap)
    finally:
        await ioc.close()
        ioc.configure({})
