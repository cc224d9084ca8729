"""The shared base of the db services: filters, order, pages, ids."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
from bson import ObjectId

from backtest_persist import (
    Container,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidWhenError,
    Mode,
    PersistStorageInstance,
    Registry,
)
from backtest_persist.core.query import to_sort


async def fill(container: Container, count: int) -> None:
    await container.storage_db_service.upsert_many(True, [{"id": f"s{n:04}", "n": n} for n in range(count)])


async def test_lists_are_whole_stable_and_oldest_first(container: Container) -> None:
    """Five thousand rows with equal dates come back all, in the order of their writing, every time."""
    await fill(container, 5_000)
    db = container.storage_db_service
    expected = [f"s{n:04}" for n in range(5_000)]
    assert [row.signal_id for row in await db.find_all()] == expected
    assert [row.signal_id for row in await db.list_by_mode(True)] == expected
    assert [row.signal_id async for row in db.iterate({"backtest": True})] == expected
    assert await db.list_by_mode(False) == []
    assert await db.count() == await db.count({"backtest": True}) == 5_000


async def test_a_limited_list_by_mode_has_the_newest_rows_oldest_first(container: Container) -> None:
    """With a limit the newest rows are listed, still in order; a limit of 0 is empty."""
    await fill(container, 10)
    db = container.storage_db_service
    assert [row.signal_id for row in await db.list_by_mode(True, 3)] == ["s0007", "s0008", "s0009"]
    assert await db.list_by_mode(True, 0) == []
    assert [row.signal_id for row in await db.find_all(limit=2)] == ["s0000", "s0001"]
    assert [row.signal_id for row in await db.find_all(newest=2)] == ["s0008", "s0009"]
    assert [row.signal_id for row in await db.find_all({"signal_id": {"$lt": "s0005"}}, newest=1)] == ["s0004"]
    assert await db.find_all(newest=0) == []
    assert await db.find_all(newest=20) == await db.find_all()
    excluding: list[dict[str, Any]] = [{"limit": 1}, {"sort": [("id", 1)]}]
    for excluded in excluding:
        with pytest.raises(InvalidKeyError, match="newest"):
            await db.find_all(newest=1, **excluded)
    with pytest.raises(InvalidKeyError):
        await db.list_by_mode(True, -1)
    with pytest.raises(InvalidKeyError):
        await db.list_by_mode(1)  # pyright: ignore[reportArgumentType]


async def test_pages_tile_the_whole(container: Container) -> None:
    """Pages of three put together are the list; each knows the total."""
    await fill(container, 10)
    db = container.storage_db_service
    pages = [await db.paginate({"backtest": True}, limit=3, offset=offset) for offset in range(0, 12, 3)]
    assert [page.total for page in pages] == [10] * 4
    assert [row for page in pages for row in page.rows] == await db.find_all()
    assert await db.paginate(limit=3) == pages[0]


async def test_an_order_is_total_and_follows_the_unique_index_where_it_can(container: Container) -> None:
    """Whatever is sorted by, `_id` decides last; a sort by the whole context needs that not, and sorts nothing."""
    candles = container.candle_db_service
    whole = [(name, 1) for name in candles.context_type.model_fields]
    for service in container.db_services:
        context = [(name, 1) for name in service.context_type.model_fields]
        assert to_sort(context, service.schema()) == [(name, 1) for name in service.context_type.wire_names()]
        assert to_sort([*context, ("create_date", -1)], service.schema())[-1] == ("createDate", -1)
        part = context[1:] or [("updated_date", 1)]
        assert to_sort(part, service.schema())[-1] == ("_id", 1)
        assert to_sort(None, service.schema()) == to_sort([], service.schema())
        assert service is candles or to_sort(None, service.schema())[-1] == ("_id", 1)
    assert to_sort([("id", -1), ("timestamp", 1)], candles.schema()) == [("_id", -1), ("timestamp", 1)]
    prices = dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)
    for symbol in ("b", "a"):
        await candles.create_many(symbol, "1m", "e", [{"timestamp": n * 60_000, **prices} for n in (0, -1, -2)])
    assert [(row.symbol, row.timestamp) for row in await candles.find_all(sort=whole)] == [
        (symbol, n * 60_000) for symbol in "ab" for n in (-2, -1, 0)
    ]
    series = {"exchangeName": "e", "symbol": "a", "interval": "1m"}
    for filter, sort, by_index in (({}, whole, True), (series, None, True), ({}, [*whole[1:], whole[0]], False)):
        command = {"find": candles.collection, "filter": filter, "sort": dict(to_sort(sort, candles.schema()))}
        plan = str((await container.mongo_service.database.command("explain", command))["queryPlanner"]["winningPlan"])
        assert ("'SORT'" in plan, "'IXSCAN'" in plan) == (not by_index, by_index), plan


async def test_filters_and_sorts_take_python_and_wire_names(container: Container) -> None:
    """strategy_name and strategyName select the same rows, nested operators included; so do id and _id."""
    for n in range(4):
        await container.signal_db_service.upsert(f"S{n}", "trend" if n % 2 else "mean", "binance", {"n": n})
    db = container.signal_db_service
    wire = await db.find_all({"strategyName": "trend"})
    assert [row.symbol for row in wire] == ["S1", "S3"]
    assert await db.find_all({"strategy_name": "trend"}) == wire
    assert await db.find_all({"$or": [{"strategy_name": "trend", "payload.n": 3}, {"symbol": "S0"}]}) != wire
    assert [row.symbol for row in await db.find_all(sort=[("strategy_name", -1), ("symbol", -1)])] == [
        "S3",
        "S1",
        "S2",
        "S0",
    ]
    assert await db.find_by_filter({"payload.n": 2}) == (await db.find_all())[2]
    assert await db.find_by_filter({"id": wire[0].id}) == wire[0]
    assert await db.find_by_filter({"_id": ObjectId(wire[0].id)}) == wire[0]
    assert await db.find_by_filter({"symbol": "none"}) is None


class Side(Enum):
    LONG = "long"


class Sym(str, Enum):  # noqa: UP042  # whose str() is the name of the member
    BTC = "BTC"


async def test_a_filter_takes_enums_by_value_and_ids_inside_operators(container: Container) -> None:
    """A filter takes the types that a payload or a key takes, and an id as text, in operators as well."""
    db = container.signal_db_service
    first = await db.upsert(Sym.BTC, "t", "e", {"side": Side.LONG, "n": 1})
    second = await db.upsert("ETH", "t", "e", {"side": Side.LONG, "n": 2})
    assert await db.find_all({"symbol": Sym.BTC, "payload.side": Side.LONG}) == [first]
    assert await db.find_all({"payload.side": {"$in": [Side.LONG]}, "symbol": {"$ne": Sym.BTC}}) == [second]
    assert await db.find_all({"id": {"$in": [first.id]}}) == [first]
    assert await db.find_all({"_id": {"$nin": (first.id, "junk")}}) == [second]
    assert await db.find_all({"id": {"$gt": first.id}}) == await db.find_all({"id": {"$ne": first.id}}) == [second]
    assert await db.find_all({"$or": [{"id": {"$not": {"$eq": first.id}}}, {"$nor": [{}]}]}) == [second]
    assert await db.find_all({"id": {"$exists": True}}) == [first, second]


async def test_a_filter_compares_what_was_written(container: Container) -> None:
    """Times, decimals, ids and numbers find the rows whose writes were given the same."""
    db, key = container.recent_db_service, uuid4()
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    for n in range(3):
        payload = {"price": Decimal("1.50"), "n": np.int64(n), "key": key, "at": noon + timedelta(hours=n)}
        await db.upsert(f"S{n}", "t", "e", "f", Mode.LIVE, payload, noon + timedelta(milliseconds=n))

    async def found(filter: Any) -> list[str]:
        return [row.symbol for row in await db.find_all(filter)]

    finer = noon + timedelta(microseconds=1500)
    assert await found({"when": {"$lte": finer}}) == await found({"when": {"$lt": finer}}) == ["S0", "S1"]
    assert await found({"when": {"$gt": finer}}) == await found({"when": {"$gte": finer}}) == ["S2"]
    assert await found({"when": noon}) == await found({"payload.at": noon}) == ["S0"]
    assert await found({"payload.price": Decimal("1.5"), "payload.key": key, "payload.n": np.int64(2)}) == ["S2"]
    assert await found({"backtest": Mode.PAPER, "create_date": {"$gt": noon}, "symbol": {"$ne": "S1"}}) == ["S0", "S2"]
    assert await found({"$expr": {"$eq": ["$strategy_name", "t"]}, "$nor": [{"symbol": "S0"}]}) == ["S1", "S2"]
    assert await found({"backtest": Mode.BACKTEST}) == await found({"updated_date": {"$lt": noon}}) == []
    with pytest.raises(InvalidWhenError, match="naive"):
        await db.count({"when": {"$lte": datetime(2024, 1, 1)}})


async def test_a_mode_is_taken_for_its_flag_in_every_call(container: Container) -> None:
    """Paper and live are False, in db and cache services, adapters and the registry; any other str is refused."""
    live, db, cache = Mode.LIVE, container.storage_db_service, container.storage_cache_service
    row = await db.upsert(live, "s", {"id": "s"})
    assert row.backtest is False
    assert await db.find_by_context(Mode.PAPER, "s") == await db.find_by_context(False, "s") == row
    assert await db.list_by_mode(live) == await db.list_by_mode(False) == [row]
    assert await db.upsert_many(Mode.BACKTEST, [{"id": "s"}]) == 1
    assert await cache.get_storage_id(live, "s") == await cache.get("live:s") == row.id
    assert await cache.has_storage_id(Mode.BACKTEST, "s")
    session, context = container.session_db_service, ("t", "e", "f", "S")
    assert (await session.upsert(*context, live, {"n": 1}, 0)) == await session.find_by_context(*context, False)
    persist = Registry(container)
    assert await persist.storage(live) is await persist.storage(False)
    adapter = PersistStorageInstance(live, ioc=container)
    assert adapter.backtest is False
    assert await adapter.read_storage_data() == [{"id": "s"}]
    with pytest.raises(InvalidKeyError, match="Mode"):
        await db.list_by_mode("live")  # pyright: ignore[reportArgumentType]


def cycle() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["symbol"] = loop
    return loop


BAD_FILTERS: dict[str, Any] = {
    "unknown operator": {"$odd": 1},
    "str": "symbol",
    "empty str": "",
    "number": 5,
    "list": [("symbol", "s")],
    "name that is no str": {1: 2},
    "name with NUL": {"a\0b": 1},
    "lone surrogate": {"symbol": "\ud800"},
    "lone surrogate in an operator": {"symbol": {"$in": ["\ud800"]}},
    "int beyond 64 bits": {"payload.n": 2**63},
    "object": {"symbol": object()},
    "set": {"symbol": {1}},
    "array": {"payload.n": np.array([1])},
    "unknown field": {"sybol": "s"},
    "naive datetime": {"payload.at": datetime(2024, 1, 1)},
    "cycle": cycle(),
    "or of no mappings": {"$or": ["x"]},
    "or of nothing": {"$or": None},
}
BAD_SORTS: dict[str, Any] = {
    "direction": [("symbol", 5)],
    "bool": [("symbol", True)],
    "mapping": {"createDate": -1},
    "str": "createDate",
    "number": [5],
    "three": [("symbol", 1, 1)],
    "no str": [(5, 1)],
    "empty name": [("", 1)],
    "lone surrogate": [("\ud800", 1)],
    "NUL": [("a\0b", 1)],
    "pair": ("symbol", 1),
    "unknown field": [("sybol", 1)],
}
BAD_QUERIES: dict[str, dict[str, Any]] = {
    **{name: {"filter": filter} for name, filter in BAD_FILTERS.items()},
    **{f"sort {name}": {"filter": {}, "sort": sort} for name, sort in BAD_SORTS.items()},
}


@pytest.mark.parametrize("query", BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
async def test_a_query_that_mongo_does_not_understand_is_a_typed_error(
    container: Container, query: dict[str, Any]
) -> None:
    """An invalid filter or sort is an InvalidKeyError, and not an error of the server."""
    db = container.signal_db_service
    with pytest.raises(InvalidKeyError):
        await db.find_all(**query)
    with pytest.raises(InvalidKeyError):
        await db.find_by_filter(**query)
    with pytest.raises(InvalidKeyError):
        await db.paginate(**query, limit=1, offset=0)
    with pytest.raises(InvalidKeyError):
        [row async for row in db.iterate(**query)]
    if "sort" not in query:
        with pytest.raises(InvalidKeyError):
            await db.count(**query)


async def test_a_limit_is_any_int_from_zero_that_fits_64_bits(container: Container) -> None:
    """The ints of numpy are ints; every list checks limit and offset, also when there is nothing to fetch."""
    await fill(container, 3)
    await container.log_db_service.create_many([{"id": str(n)} for n in range(3)])
    db, log, one = container.storage_db_service, container.log_db_service, cast("int", np.int64(1))
    assert (
        len(await db.find_all(limit=one)) == len(await db.list_by_mode(True, one)) == len(await log.list_all(one)) == 1
    )
    page = await db.paginate({}, limit=one, offset=one)
    assert ([row.signal_id for row in page.rows], page.total) == (["s0001"], 3)
    assert (await db.paginate({}, limit=0, offset=0)).rows == []
    assert len((await db.paginate({}, limit=2**63 - 1, offset=1)).rows) == 2
    bad_ones: list[Any] = [-1, 2**63, 1.0, True, "1"]
    for bad in bad_ones:
        for call in (
            db.find_all(limit=bad),
            db.list_by_mode(True, bad),
            log.list_all(bad),
            db.paginate({}, limit=bad, offset=0),
            db.paginate({}, limit=0, offset=bad),
        ):
            with pytest.raises(InvalidKeyError):
                await call


async def test_nothing_to_write_is_no_reason_to_accept_a_bad_call(container: Container) -> None:
    """A mode that is no bool and entries that are None are refused, and named."""
    with pytest.raises(InvalidKeyError, match="backtest"):
        await container.storage_db_service.upsert_many("x", [])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidKeyError, match="backtest"):
        await container.notification_db_service.upsert_many(1, [])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidPayloadError, match="storage-items"):
        await container.storage_db_service.upsert_many(True, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidPayloadError, match="log-items"):
        await container.log_db_service.create_many(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidKeyError, match="filter"):
        await container.log_db_service.find_by_filter(None)  # pyright: ignore[reportArgumentType]


async def test_an_entry_of_a_list_is_never_none(container: Container) -> None:
    """None is refused before it is stored, where a reader of the list would stumble over it."""
    with pytest.raises(InvalidPayloadError, match="None"):
        await container.log_db_service.upsert("a", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidPayloadError, match="None"):
        await container.storage_db_service.upsert(True, "a", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidPayloadError, match="None"):
        await container.notification_db_service.upsert(True, "a", None)  # pyright: ignore[reportArgumentType]
    for service in (container.log_db_service, container.storage_db_service, container.notification_db_service):
        assert await service.count() == 0


async def test_an_id_finds_its_row_and_a_malformed_one_finds_none(container: Container) -> None:
    """`find_by_id` casts to ObjectId, and returns None for a malformed id."""
    row = await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    assert await container.signal_db_service.find_by_id(row.id) == row
    for bad in ("", "junk", "g" * 24, "f" * 24, "1" * 12):
        assert await container.signal_db_service.find_by_id(bad) is None


async def test_dates_are_set_on_insert_and_on_every_write(container: Container) -> None:
    """A second write moves updatedDate and leaves createDate, id and __v."""
    first = await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    second = await container.signal_db_service.upsert("s", "t", "e", {"n": 2})
    assert second.id == first.id
    assert second.create_date == first.create_date == first.updated_date
    assert second.updated_date >= first.updated_date
    assert second.updated_date.utcoffset() is not None
