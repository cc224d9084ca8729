"""Payloads come back exactly as they went in, through a real server."""

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from bson import Binary, Code
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from backtest_persist import Container, InvalidPayloadError, Settings, SignalRow
from backtest_persist.connections import CODEC_OPTIONS
from tests.support.commands import monitored_container
from tests.support.payloads import BSON_VALUES, keys, typed, values


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.dictionaries(keys, values, max_size=5))
async def test_plain_data_round_trips_exactly(container: Container, payload: dict[str, Any]) -> None:
    """Nested plain data, keys with $ and . included, is equal after a round trip, types and all."""
    row = await container.signal_db_service.upsert("s", "t", "e", payload)
    found = await container.signal_db_service.find_by_context("s", "t", "e")
    assert found is not None
    assert row.payload == found.payload == payload
    assert typed(found.payload) == typed(payload)


class Side(Enum):
    LONG = "long"


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    price_open: Decimal
    side: Side


@dataclass
class Point:
    x: int
    y: Any


async def test_models_enums_numpy_and_dataclasses_come_back_as_plain_data(container: Container) -> None:
    """Objects are stored by value: models by alias, enums, numpy scalars, dataclasses, tuples."""
    model = Model(price_open=Decimal("1.10"), side=Side.LONG)
    row = await container.signal_db_service.upsert("s", "t", "e", model)
    assert row.payload == {"priceOpen": Decimal("1.10"), "side": "long"}
    eastern = timezone(timedelta(hours=-5))
    payload: dict[str, Any] = {
        "model": model,
        "side": Side.LONG,
        "point": Point(1, (1, 2)),
        "i": np.int64(7),
        "f": np.float64(0.5),
        "b": np.bool_(True),
        "at": datetime(2024, 1, 1, tzinfo=eastern),
        "inf": float("inf"),
    }
    row = await container.signal_db_service.upsert("s", "t", "e", payload)
    assert row.payload == {
        "model": {"priceOpen": Decimal("1.10"), "side": "long"},
        "side": "long",
        "point": {"x": 1, "y": [1, 2]},
        "i": 7,
        "f": 0.5,
        "b": True,
        "at": datetime(2024, 1, 1, 5, tzinfo=UTC),
        "inf": float("inf"),
    }
    assert row.payload is not None
    assert type(row.payload["i"]) is int
    assert type(row.payload["b"]) is bool
    nan = await container.signal_db_service.upsert("s", "t", "e", {"nan": float("nan")})
    assert nan.payload is not None
    assert nan.payload["nan"] != nan.payload["nan"]


def cycle() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    return loop


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"n": value}
    return value


def doubling() -> dict[str, Any]:
    value: list[Any] = [0]
    for _ in range(60):
        value = [value, value]
    return {"v": value}


REFUSED: dict[str, Any] = {
    "int beyond 64 bits": {"n": 2**63},
    "naive datetime": {"at": datetime(2024, 1, 1)},
    "datetime finer than a ms": {"at": datetime(2024, 1, 1, microsecond=1, tzinfo=UTC)},
    "set": {"s": {1}},
    "object": {"o": object()},
    "class": {"c": Point},
    "key that is no str": {1: "a"},
    "key with NUL": {"a\0b": 1},
    "lone surrogate": {"a": "\ud800"},
    "decimal of 35 digits": {"d": Decimal("1" * 35)},
    "cycle": cycle(),
    "91 levels": deep(91),
    "2**60 values": doubling(),
    "17 MB": {"s": "x" * 17_000_000},
    "17 MB in small pieces": {"s": ["xxxxxxxxxx" * 100] * 17_000},
    "complex": {"z": 1j},
    "a list": [1],
    "a str": "text",
    "a number": 5,
    "a class": Point,
}


@contextmanager
def within(seconds: float) -> Generator[None]:
    """End what takes longer, also if it never lets the event loop have a turn."""

    def end(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED.keys())
async def test_what_cannot_be_stored_exactly_is_refused_before_anything_is_sent(
    container: Container, payload: Any
) -> None:
    """An InvalidPayloadError names domain and context, never the payload, and the old value stays."""
    with pytest.raises(InvalidPayloadError, match="signal-items") as caught, within(30):
        await container.signal_db_service.upsert("s", "t", "e", payload)
    assert len(str(caught.value)) < 300
    assert await container.signal_db_service.find_by_context("s", "t", "e") is None


async def test_what_is_refused_sends_nothing_and_leaves_its_companions(settings: Settings, driver: str) -> None:
    """No command reaches MongoDB for it, and writes that were called in the same turn are stored."""
    async with monitored_container(settings, driver) as (container, commands):
        db = container.signal_db_service
        await db.wait_for_init()
        commands.names.clear()
        refused = [payload for name, payload in REFUSED.items() if name != "2**60 values"]  # which takes seconds
        for payload in refused:
            with pytest.raises(InvalidPayloadError), within(30):
                await db.upsert("s", "t", "e", payload)
        assert commands.names == []
        payloads = [payload for bad in refused for payload in (bad, {"n": 1})]
        writes = (db.upsert("s", "t", f"e{n}", payload) for n, payload in enumerate(payloads))
        ends = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(end) for end in ends] == [InvalidPayloadError, SignalRow] * len(refused)
        assert [row.payload for row in await db.find_all()] == [{"n": 1}] * len(refused)


@pytest.mark.parametrize(
    "value",
    [
        {"$ref": "a", "$id": 1},
        {"$id": {"n": 2**40}, "x": Decimal("1.0"), "$ref": "a", "$db": "b"},
        {"$ref": 1, "$id": 2},
        {"$ref": "c", "$id": 1, "$db": None},
        {"x": 1, "$id": 1, "$ref": "c", "collection": "d", "_DBRef__kwargs": {}},
    ],
)
async def test_what_looks_like_a_reference_is_data(container: Container, value: dict[str, Any]) -> None:
    """A payload with the keys of a DBRef comes back as the dict it was, at any level."""
    row = await container.signal_db_service.upsert("s", "t", "e", {**value, "inner": [value]})
    assert row.payload == {**value, "inner": [value]}
    found = await container.signal_db_service.find_by_context("s", "t", "e")
    assert found is not None
    assert repr(found.payload) == repr(row.payload) == repr({**value, "inner": [value]})


async def test_the_deepest_and_the_largest_payloads_are_stored(container: Container) -> None:
    """Ninety levels and eight megabytes are within the limits."""
    assert (await container.signal_db_service.upsert("s", "t", "e", deep(90))).payload == deep(90)
    large = {"s": "x" * 8_000_000}
    assert (await container.signal_db_service.upsert("s", "t", "e", large)).payload == large


async def test_a_payload_changed_after_the_call_is_stored_as_it_was(container: Container) -> None:
    """The write takes a copy when it is called."""
    payload = {"items": [1]}
    writing = asyncio.ensure_future(container.signal_db_service.upsert("s", "t", "e", payload))
    await asyncio.sleep(0)
    payload["items"].append(2)
    assert (await writing).payload == {"items": [1]}


async def test_what_another_program_stored_keeps_its_type(container: Container) -> None:
    """Values that only BSON has, and UUIDs, come back as what they are, and are written back as what they were."""
    db, key = container.signal_db_service, UUID(int=5)
    collection = container.mongo_service.collection("signal-items")
    row = await db.upsert("s", "t", "e", {"key": key})
    assert row.payload == {"key": key}
    foreign = {**BSON_VALUES, "Code with scope": Code("f()", {"n": 1}), "key": Binary.from_uuid(key)}
    await collection.update_one({}, {"$set": {"payload": foreign}})
    before = await raw(container)
    found = await db.find_by_context("s", "t", "e")
    assert found is not None
    assert found.payload == {**foreign, "key": key}
    assert (await db.find_all())[0] == found
    await db.upsert("s", "t", "e", found.payload)
    assert (await raw(container))["payload"] == before["payload"]
    far = BSON_VALUES["a date beyond the years of datetime"]
    await collection.update_one({}, {"$set": {"createDate": far}})
    with pytest.raises(InvalidPayloadError, match=f"{row.id} .*createDate"):
        await db.find_by_context("s", "t", "e")


async def raw(container: Container) -> Any:
    """Return the one stored signal without decoding its payload."""
    options = CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
    document: Any = await container.mongo_service.collection("signal-items").with_options(options).find_one({})
    return {name: getattr(value, "raw", value) for name, value in document.items()}
