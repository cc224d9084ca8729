"""Maps, as far as no server is needed: namespaces, patterns, names of keys, and which keys were seen."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest_persist import BaseMap, InvalidKeyError, SettingsError, base_map
from backtest_persist.core.base_map import SeenKeys, _escape_glob, _to_key

UNUSABLE_NAMES: list[Any] = ["", "a\0b", "\ud800", None, 5, b"a"]


# --- namespaces ---


def test_a_namespace_is_given_to_the_function_or_to_the_class() -> None:
    """Both ways give a map with the namespace and its time to live; subclasses inherit them."""

    class Prices(BaseMap, connection_key="prices", ttl_expire_seconds=60):
        pass

    class Cheap(Prices):
        pass

    made = base_map("prices", 60)
    for map_type in (Prices, Cheap, made):
        assert (map_type.connection_key, map_type.ttl_expire_seconds) == ("prices", 60)
    assert made.__name__ == "BaseMap[prices]"
    assert base_map("prices").ttl_expire_seconds == 300
    assert base_map("prices", -1).ttl_expire_seconds == -1


@pytest.mark.parametrize("name", UNUSABLE_NAMES, ids=repr)
def test_an_unusable_namespace_is_refused_when_the_class_is_made(name: Any) -> None:
    """A namespace is a non-empty text, as keys are."""
    with pytest.raises(InvalidKeyError, match="connection_key"):
        base_map(name)


@pytest.mark.parametrize("ttl", [True, 1.5, "60"], ids=repr)
def test_a_time_to_live_is_an_int(ttl: Any) -> None:
    """The error names the class, and the value for no expiry."""
    with pytest.raises(SettingsError, match=r"BoundMap: .*-1 means no expiry"):
        base_map("prices", ttl)
    with pytest.raises(SettingsError, match="Prices: "):
        type("Prices", (BaseMap,), {"ttl_expire_seconds": ttl}, connection_key="prices")


def test_a_map_without_a_namespace_cannot_be_made() -> None:
    """The message says how to get one."""
    with pytest.raises(SettingsError, match="base_map"):
        BaseMap()


@pytest.mark.parametrize("key", [name for name in UNUSABLE_NAMES if name is not None], ids=repr)
async def test_an_unusable_key_is_refused_by_every_method(key: Any) -> None:
    """Nothing is sent: the process has no server."""
    prices = base_map("prices")()
    for call in (prices.get(key), prices.set(key, "v"), prices.has(key), prices.delete(key)):
        with pytest.raises(InvalidKeyError, match="key"):
            await call
    with pytest.raises(InvalidKeyError, match="key"):
        await prices.get_many(["k", key])
    with pytest.raises(InvalidKeyError, match="key"):
        await prices.set_many([("k", "v"), (key, "v")])


async def test_no_key_has_no_value() -> None:
    """None, and no keys at all, are answered without a server."""
    prices = base_map("prices")()
    assert await prices.get(None) is None
    assert await prices.get_many([]) == []
    await prices.set_many([])


# --- patterns and names ---


@given(st.text("ab*?[]\\^-:é", max_size=8))
def test_a_pattern_matches_its_own_text_alone(text: str) -> None:
    """Every character with a meaning to SCAN is escaped, and no character is lost."""
    pattern = _escape_glob(text)
    assert re.sub(rb"\\(.)", rb"\1", pattern, flags=re.DOTALL) == text.encode()
    assert not re.search(rb"(?<!\\)(?:\\\\)*[*?\[\]]", pattern)


def test_a_pattern_may_hold_bytes_that_are_no_text() -> None:
    """A prefix that came from the environment can have such bytes."""
    assert _escape_glob(b"a\xff*".decode("utf-8", "surrogateescape")) == b"a\xff\\*"


@pytest.mark.parametrize(
    ("name", "key"),
    [(b"k", "k"), ("é:1".encode(), "é:1"), (b"", None), (b"\xff", None), (b"a\0b", None), (b"\xed\xa0\x80", None)],
    ids=repr,
)
def test_a_name_in_redis_is_a_key_if_get_would_take_it(name: bytes, key: str | None) -> None:
    """Names of other programs that are empty, hold NUL or are no UTF-8 are not there for iteration."""
    assert _to_key(name) == key


# --- keys that were seen ---


def test_a_key_is_new_once() -> None:
    """Hundreds of thousands of keys are told apart, those that differ in one byte included."""
    seen = SeenKeys()
    names = [f"prefix:signal_cache:{n}".encode() for n in range(100_000)]
    assert all(seen.add(name) for name in names)
    assert not any(seen.add(name) for name in names)
    assert seen.add(b"prefix:signal_cache:100000")


@given(st.lists(st.sampled_from([bytes([n]) for n in range(40)]), max_size=100))
def test_seen_keys_are_those_that_were_added(names: list[bytes]) -> None:
    """In any order, and also where several share a bucket: the answer is that of a set."""
    seen, known = SeenKeys(), set[bytes]()
    seen._buckets = seen._buckets[:1] * SeenKeys.BUCKETS
    for name in names:
        assert seen.add(name) is (name not in known)
        known.add(name)
