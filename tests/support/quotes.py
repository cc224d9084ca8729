"""A domain of a user's whose rows have fields beside a payload, and whose files are named by several fields."""

from backtest_persist.extend import (
    Context,
    DbService,
    Domain,
    Family,
    FileLayout,
    Flag,
    Name,
    PersistInstance,
    Row,
    Services,
    Timestamp,
    When,
    base_map,
    join_key,
    mode_word,
)

__all__ = ("QUOTE", "PersistQuoteInstance", "QuoteContext", "QuoteDbService", "QuoteRow")


class QuoteContext(Context):
    venue: Name
    backtest: Flag
    symbol: Name
    side: Name

    @property
    def cache_key(self) -> str:
        return join_key(self.venue, mode_word(self.backtest), self.symbol, self.side)


class QuoteRow(QuoteContext, Row):
    best_price: float
    sizes: list[int]
    when: Timestamp


class QuoteCacheService(base_map("quote_cache", -1)):
    pass


class QuoteDbService(DbService[QuoteContext, QuoteRow]):
    collection = "quote-items"

    async def list_by_venue(self, venue: str, backtest: bool, newest: int | None = None) -> list[QuoteRow]:
        return await self.store.select({"venue": venue, "backtest": backtest}, newest=newest)


class PersistQuoteInstance(PersistInstance[QuoteDbService]):
    def __init__(self, venue: str, backtest: bool, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.venue = venue
        self.backtest = backtest

    async def write_quote_data(self, symbol: str, side: str, price: float, sizes: list[int], when: When) -> QuoteRow:
        context = QuoteContext(venue=self.venue, backtest=self.backtest, symbol=symbol, side=side)
        return await self.db.store.upsert(
            context, {"bestPrice": price, "sizes": sizes, "when": self.db.wire_when(when)}
        )


QUOTE = Domain(
    "quote",
    Family.LIST,
    QuoteCacheService,
    QuoteDbService,
    PersistQuoteInstance,
    FileLayout("data/quote", (("venue", "backtest"),), ("symbol", "side")),
)
