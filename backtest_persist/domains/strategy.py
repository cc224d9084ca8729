"""Strategies: what a strategy has yet to do, of a symbol, a strategy and an exchange."""

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = (
    "STRATEGY",
    "PersistStrategyInstance",
    "StrategyCacheService",
    "StrategyContext",
    "StrategyDbService",
    "StrategyRow",
)


class StrategyContext(Context):
    """Identifies the deferred state of a context."""

    symbol: Name
    strategy_name: Name
    exchange_name: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``strategy_cache``."""
        return join_key(self.exchange_name, self.strategy_name, self.symbol)


class StrategyRow(StrategyContext, Row):
    """One document of ``strategy-items``."""

    payload: Payload | None


class StrategyCacheService(base_map("strategy_cache", -1)):
    """Remembers which document holds the deferred state of a context."""

    async def has_strategy_id(self, symbol: str, strategy_name: str, exchange_name: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            StrategyContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name).cache_key
        )

    async def get_strategy_id(self, symbol: str, strategy_name: str, exchange_name: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            StrategyContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name).cache_key
        )

    async def set_strategy_id(self, row: StrategyRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class StrategyDbService(DbService[StrategyContext, StrategyRow]):
    """Reads and writes ``strategy-items``."""

    collection = "strategy-items"

    async def upsert(
        self, symbol: str, strategy_name: str, exchange_name: str, payload: PayloadInput | None
    ) -> StrategyRow:
        """Replace the payload in one atomic write; None means that nothing is deferred."""
        return await self.store.upsert(*self.content(symbol, strategy_name, exchange_name, payload))

    def content(
        self, symbol: str, strategy_name: str, exchange_name: str, payload: PayloadInput | None
    ) -> Content[StrategyContext]:
        """Return the context and the fields that a write stores."""
        context = StrategyContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        return context, {"payload": self.encoded(payload, context)}

    async def find_by_context(self, symbol: str, strategy_name: str, exchange_name: str) -> StrategyRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            StrategyContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        )


class PersistStrategyInstance(PersistInstance[StrategyDbService]):
    """Keeps the deferred state of a strategy: what it has yet to commit, and deferred actions of users."""

    def __init__(self, symbol: str, strategy_name: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name

    async def read_strategy_data(self) -> Payload | None:
        """Return the payload, or None when nothing is deferred."""
        row = await self.db.find_by_context(self.symbol, self.strategy_name, self.exchange_name)
        return None if row is None else row.payload

    async def write_strategy_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is deferred any more."""
        await self.db.store.write(*self.db.content(self.symbol, self.strategy_name, self.exchange_name, row))


STRATEGY = Domain(
    "strategy",
    Family.LATEST_VALUE,
    StrategyCacheService,
    StrategyDbService,
    PersistStrategyInstance,
    FileLayout("data/strategy", (("symbol", "strategy_name", "exchange_name"),), ("symbol",)),
)
