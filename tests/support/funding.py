"""A domain of one's own: the funding rate of a symbol on an exchange, written with the public names alone."""

from backtest_persist import extend

__all__ = ("FUNDING",)


class FundingContext(extend.Context):
    """Identifies a funding rate."""

    symbol: extend.Name
    exchange_name: extend.Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``funding_cache``."""
        return extend.join_key(self.exchange_name, self.symbol)


class FundingRow(FundingContext, extend.Row):
    """One document of ``funding-items``."""

    payload: extend.Payload | None
    when: extend.Timestamp


class FundingCacheService(extend.base_map("funding_cache", -1)):
    """Remembers which document holds a funding rate."""


class FundingDbService(extend.DbService[FundingContext, FundingRow]):
    """Reads and writes ``funding-items``."""

    collection = "funding-items"

    async def upsert(
        self, symbol: str, exchange_name: str, payload: extend.PayloadInput | None, when: extend.When
    ) -> FundingRow:
        """Replace the payload in one atomic write."""
        context = FundingContext(symbol=symbol, exchange_name=exchange_name)
        fields = {"payload": self.encoded(payload, context), "when": extend.wire_when(when)}
        return await self.store.upsert(context, fields)

    async def find_by_context(self, symbol: str, exchange_name: str) -> FundingRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(FundingContext(symbol=symbol, exchange_name=exchange_name))


class PersistFundingInstance(extend.PersistInstance[FundingDbService]):
    """Keeps the funding rate of a symbol on an exchange."""

    def __init__(self, symbol: str, exchange_name: str, *, ioc: extend.Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.exchange_name = exchange_name

    async def read_funding_data(self, *, when: extend.When | None = None) -> extend.Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when`."""
        horizon = extend.to_horizon(when)
        row = await self.db.find_by_context(self.symbol, self.exchange_name)
        return row.payload if row is not None and row.when <= horizon else None

    async def write_funding_data(self, data: extend.PayloadInput | None, when: extend.When) -> None:
        """Replace the payload; an earlier `when` overwrites."""
        await self.db.upsert(self.symbol, self.exchange_name, data, when)


FUNDING = extend.Domain(
    "funding",
    extend.Family.LATEST_VALUE,
    FundingCacheService,
    FundingDbService,
    PersistFundingInstance,
    extend.FileLayout("data/funding", (("exchange_name",),), ("symbol",), stated_by="when"),
)
