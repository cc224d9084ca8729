"""Import and export of domains that a user has declared: they are moved like those of the package."""

import json
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, Settings, export_dump, import_dump
from backtest_persist.extend import (
    Context,
    DbService,
    Domain,
    Family,
    FileLayout,
    Name,
    PersistInstance,
    Row,
    Timestamp,
    base_map,
    join_key,
)
from backtest_persist.operations import rebuild, verify
from tests.support.dumps import file_totals, files_of, stored_documents, write_dump


class TradeContext(Context):
    symbol: Name
    timestamp: Timestamp

    @property
    def cache_key(self) -> str:
        return join_key(self.symbol, str(self.timestamp))


class TradeRow(TradeContext, Row):
    price: float
    maker: bool


class TradeCacheService(base_map("trade_cache", -1)):
    pass


class TradeDbService(DbService[TradeContext, TradeRow]):
    collection = "trade-items"

    async def upsert(self, symbol: str, timestamp: int, price: float, maker: bool) -> TradeRow:
        return await self.store.upsert(
            TradeContext(symbol=symbol, timestamp=timestamp), {"price": price, "maker": maker}
        )


class PersistTradeInstance(PersistInstance[TradeDbService]):
    def __init__(self, symbol: str, *, ioc: Any = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol


TRADE = Domain(
    "trade",
    Family.SERIES,
    TradeCacheService,
    TradeDbService,
    PersistTradeInstance,
    FileLayout("data/trade", (("symbol",),), ("timestamp",)),
)


@pytest.mark.parametrize("cached", [True, False])
async def test_a_series_is_exported_imported_and_cached(settings: Settings, tmp_path: Path, cached: bool) -> None:
    """Its rows come back as they were, and CC_CANDLE_CACHE has nothing to do with its ids."""
    ours = settings.model_copy(update={"candle_cache": cached})
    async with Container(ours, domains=[TRADE]) as container:
        service = container.db_service(TradeDbService)
        for n in range(3):
            await service.upsert("a/b", n - 2, 1.5 + n, n == 1)
        before = await stored_documents(container)
        exported = await export_dump(container, tmp_path / "dump")
        assert (exported.domains["trade"], exported.skipped) == (3, [])
        assert json.loads(files_of(tmp_path / "dump")["data/trade/a%2Fb/-1.json"]) == {"price": 2.5, "maker": True}

        await container.mongo_service.client.drop_database(container.mongo_service.database.name)
        async with Container(ours, domains=[TRADE]) as other:
            assert file_totals(await import_dump(other, tmp_path / "dump")) == (3, 3, 0, 0)
            assert await stored_documents(other) == before
            await other.cache_service(TradeCacheService).clear()
            assert (await verify(other)).domains["trade"].missing == 3
            assert (await rebuild(other)).domains["trade"] == 3


async def test_a_file_that_is_no_row_is_reported(settings: Settings, tmp_path: Path) -> None:
    """A value that is no object, lacks a field or has one of another type is skipped with the reason."""
    write_dump(
        tmp_path,
        {
            "data/trade/a/1.json": '{"price": 1.5, "maker": true}',
            "data/trade/a/2.json": "[]",
            "data/trade/a/3.json": '{"price": 1.5}',
            "data/trade/a/4.json": '{"price": "much", "maker": true}',
        },
    )
    async with Container(settings, domains=[TRADE]) as container:
        report = await import_dump(container, tmp_path)
    assert file_totals(report) == (4, 1, 0, 3)
    reasons = {skipped.path: skipped.reason for skipped in report.skipped}
    assert "holds no object" in reasons["data/trade/a/2.json"]
    assert "see maker" in reasons["data/trade/a/3.json"]
    assert "see price" in reasons["data/trade/a/4.json"]
