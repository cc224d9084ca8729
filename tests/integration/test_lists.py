"""The shared base of the db services: filters, order, pages, ids."""

from typing import Any

import pytest
from bson import ObjectId

from backtest_persist import Container, InvalidKeyError


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


@pytest.mark.parametrize("query", [{"filter": {"$odd": 1}}, {"filter": {}, "sort": [("symbol", 5)]}])
async def test_a_query_that_mongo_does_not_understand_is_a_typed_error(
    container: Container, query: dict[str, Any]
) -> None:
    """An unknown operator or direction is the caller's, not the server's, mistake."""
    with pytest.raises(InvalidKeyError):
        await container.signal_db_service.find_all(**query)
    with pytest.raises(InvalidKeyError):
        await container.signal_db_service.find_by_filter(**query)


async def test_an_id_finds_its_row_and_a_malformed_one_finds_none(container: Container) -> None:
    """find_by_id casts to ObjectId; anything that is none gives None."""
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
