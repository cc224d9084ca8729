"""Partials: which profit and loss levels a signal has passed."""

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = (
    "PARTIAL",
    "PartialCacheService",
    "PartialContext",
    "PartialDbService",
    "PartialRow",
    "PersistPartialInstance",
)


class PartialContext(Context):
    """Identifies the levels a signal has passed."""

    symbol: Name
    strategy_name: Name
    exchange_name: Name
    signal_id: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``partial_cache``."""
        return join_key(self.exchange_name, self.strategy_name, self.symbol, self.signal_id)


class PartialRow(PartialContext, Row):
    """One document of ``partial-items``."""

    payload: Payload | None
    when: Timestamp


class PartialCacheService(base_map("partial_cache", -1)):
    """Remembers which document holds the levels a signal has passed."""

    async def has_partial_id(self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            PartialContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            ).cache_key
        )

    async def get_partial_id(self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            PartialContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            ).cache_key
        )

    async def set_partial_id(self, row: PartialRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class PartialDbService(DbService[PartialContext, PartialRow]):
    """Reads and writes ``partial-items``."""

    collection = "partial-items"

    async def upsert(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        signal_id: str,
        payload: PayloadInput | None,
        when: When | None = None,
    ) -> PartialRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(*self.content(symbol, strategy_name, exchange_name, signal_id, payload, when))

    def content(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        signal_id: str,
        payload: PayloadInput | None,
        when: When | None,
    ) -> Content[PartialContext]:
        """Return the context and the fields that a write stores."""
        context = PartialContext(
            symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
        )
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(
        self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str
    ) -> PartialRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            PartialContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id)
        )


class PersistPartialInstance(PersistInstance[PartialDbService]):
    """Keeps the levels a signal has passed, for the signals of a symbol, a strategy and an exchange."""

    def __init__(self, symbol: str, strategy_name: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name

    async def read_partial_data(self, signal_id: str, when: When | None = None) -> Payload:
        """Return what was known of the signal at `when` (aware datetime, or ms UTC); {} when absent or later."""
        horizon = self.db.to_millis(when)
        row = await self.db.find_by_context(self.symbol, self.strategy_name, self.exchange_name, signal_id)
        return (row.payload or {}) if row is not None and row.when <= horizon else {}

    async def write_partial_data(self, data: PayloadInput, signal_id: str, when: When | None = None) -> None:
        """Replace what is known of the signal; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(
            *self.db.content(self.symbol, self.strategy_name, self.exchange_name, signal_id, data, when)
        )


PARTIAL = Domain(
    "partial",
    Family.LATEST_VALUE,
    PartialCacheService,
    PartialDbService,
    PersistPartialInstance,
    FileLayout("data/partial", (("symbol", "strategy_name", "exchange_name"),), ("signal_id",)),
)
