"""Checked by pyright, never run: what the public names are to a type checker."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from backtest_persist import (
    BaseMap,
    CandleFrame,
    CandleReport,
    CandleRow,
    Container,
    Mode,
    Page,
    PersistSignalInstance,
    Registry,
    RowFrame,
    RowList,
    SignalCacheService,
    SignalRow,
    base_map,
    contracts,
    ioc,
    persist,
)
from tests.own_domain.funding import (
    FUNDING,
    FundingCacheService,
    FundingDbService,
    FundingRow,
    PersistFundingInstance,
)


async def registry() -> None:
    assert_type(await persist.signal("BTCUSDT", "s", "binance"), contracts.SignalAdapter)
    assert_type(await persist.candle("BTCUSDT", "1m", "binance"), contracts.CandleAdapter)
    signal = await persist.signal("BTCUSDT", strategy_name="s", exchange_name="binance")
    assert_type(await signal.read_signal_data(), dict[str, Any] | None)
    risk = await persist.risk("r", "binance")
    assert_type(await risk.read_position_data(0), list[Any])
    measure = await persist.measure("b")
    assert_type(measure.list_measure_data(), AsyncIterator[str])
    assert_type(await persist.storage(Mode.PAPER), contracts.StorageAdapter)
    assert_type(await (await persist.interval("b")).claim_interval_data({}, "k", 0), bool)
    assert_type(await ioc.interval_db_service.claim("b", "k", {}, 0), bool)
    await persist.storage("live")  # pyright: ignore[reportArgumentType]
    await persist.signal("BTCUSDT", "s")  # pyright: ignore[reportCallIssue]
    await persist.signal("BTCUSDT", strategy="s", exchange_name="binance")  # pyright: ignore[reportCallIssue]
    await persist.memory(signal_id="s-1", bucket_name="notes")
    await persist.log("x")  # pyright: ignore[reportCallIssue]
    await persist.candle("BTCUSDT", "7m", "binance")  # pyright: ignore[reportArgumentType]
    await persist.session("t", "e", "f", "s", "live")  # pyright: ignore[reportArgumentType]
    await risk.write_position_data([], None)  # pyright: ignore[reportArgumentType]
    persist.signal.use(PersistSignalInstance)
    Registry(Container()).use_mongo()


async def services() -> None:
    assert_type(ioc.signal_cache_service, SignalCacheService)
    assert_type(await ioc.signal_cache_service.get_signal_id("s", "t", "e"), str | None)
    assert_type(await ioc.signal_db_service.find_by_context("s", "t", "e"), SignalRow | None)
    rows = await ioc.candle_db_service.find_range("s", "1m", "e", 0, 1)
    assert_type(rows, RowList[CandleRow])
    assert_type(rows[0], CandleRow)
    assert_type(rows[:2].to_frame(), RowFrame)
    assert_type(await ioc.candle_db_service.find_frame("s", "1m", "e", "2024-01-01"), CandleFrame)
    assert_type(await ioc.candle_db_service.store("s", "1m", "e", []), CandleReport)
    assert_type(await ioc.signal_db_service.paginate({}, limit=1, offset=0), Page[SignalRow])
    assert_type(base_map("x"), type[BaseMap])
    await ioc.candle_db_service.upsert()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def own_domains(container: Container) -> None:
    assert_type(container.db_service(FundingDbService), FundingDbService)
    assert_type(container.cache_service(FundingCacheService), FundingCacheService)
    assert_type(await container.db_service(FundingDbService).find_by_context("s", "e"), FundingRow | None)
    assert_type(await PersistFundingInstance("s", "e", ioc=container).read_funding_data(), dict[str, Any] | None)
    Container(domains=[FUNDING])
    container.db_service(FundingRow)  # pyright: ignore[reportArgumentType]


def adapters(
    signal: PersistSignalInstance,
) -> contracts.SignalAdapter:
    return signal
