"""Funding rates: the latest one of a perpetual future on an exchange."""

from backtest_persist.extend import (
    Context,
    DbService,
    Domain,
    Family,
    FileLayout,
    Name,
    Payload,
    PayloadInput,
    PersistInstance,
    Row,
    Services,
    Timestamp,
    When,
    base_map,
    join_key,
)


class FundingContext(Context):  # what identifies a document: the unique index, in index order
    symbol: Name
    exchange_name: Name

    @property
    def cache_key(self) -> str:
        return join_key(self.exchange_name, self.symbol)


class FundingRow(FundingContext, Row):  # a document
    payload: Payload | None
    when: Timestamp


class FundingCacheService(base_map("funding_cache", -1)):  # its ids in Redis, without expiry
    pass


class FundingDbService(DbService[FundingContext, FundingRow]):
    collection = "funding-items"

    async def upsert(self, symbol: str, exchange_name: str, payload: PayloadInput | None, when: When) -> FundingRow:
        context = FundingContext(symbol=symbol, exchange_name=exchange_name)
        return await self.store.upsert(
            context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}
        )

    async def find_by_context(self, symbol: str, exchange_name: str) -> FundingRow | None:
        return await self.store.find(FundingContext(symbol=symbol, exchange_name=exchange_name))


class PersistFundingInstance(PersistInstance[FundingDbService]):  # what strategy code calls, on any backend
    def __init__(self, symbol: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.exchange_name = exchange_name

    async def read_funding_data(self, *, when: When | None = None) -> Payload | None:
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.symbol, self.exchange_name)
        return row.payload if row is not None and row.when <= horizon else None

    async def write_funding_data(self, data: PayloadInput | None, when: When) -> None:
        await self.db.upsert(self.symbol, self.exchange_name, data, when)


FUNDING = Domain(
    "funding",
    Family.LATEST_VALUE,
    FundingCacheService,
    FundingDbService,
    PersistFundingInstance,
    FileLayout("data/funding", (("exchange_name",),), ("symbol",)),  # data/funding/binance/BTCUSDT.json
)
