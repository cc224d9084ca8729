"""Breakevens: whether the stop of a signal has been moved to its entry price."""

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = (
    "BREAKEVEN",
    "BreakevenCacheService",
    "BreakevenContext",
    "BreakevenDbService",
    "BreakevenRow",
    "PersistBreakevenInstance",
)


class BreakevenContext(Context):
    """Identifies the breakeven mark of a signal."""

    symbol: Name
    strategy_name: Name
    exchange_name: Name
    signal_id: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``breakeven_cache``."""
        return join_key(self.exchange_name, self.strategy_name, self.symbol, self.signal_id)


class BreakevenRow(BreakevenContext, Row):
    """One document of ``breakeven-items``."""

    payload: Payload | None
    when: Timestamp


class BreakevenCacheService(base_map("breakeven_cache", -1)):
    """Remembers which document holds the breakeven mark of a signal."""

    async def has_breakeven_id(self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            BreakevenContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            ).cache_key
        )

    async def get_breakeven_id(self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            BreakevenContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            ).cache_key
        )

    async def set_breakeven_id(self, row: BreakevenRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class BreakevenDbService(DbService[BreakevenContext, BreakevenRow]):
    """Reads and writes ``breakeven-items``."""

    collection = "breakeven-items"

    async def upsert(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        signal_id: str,
        payload: PayloadInput | None,
        when: When | None = None,
    ) -> BreakevenRow:
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
    ) -> Content[BreakevenContext]:
        """Return the context and the fields that a write stores."""
        context = BreakevenContext(
            symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
        )
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(
        self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str
    ) -> BreakevenRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            BreakevenContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            )
        )


class PersistBreakevenInstance(PersistInstance[BreakevenDbService]):
    """Keeps the breakeven mark of a signal, for the signals of a symbol, a strategy and an exchange."""

    def __init__(self, symbol: str, strategy_name: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name

    async def read_breakeven_data(self, signal_id: str, when: When | None = None) -> Payload:
        """Return what was known of the signal at `when` (aware datetime, or ms UTC); {} when absent or later."""
        horizon = self.db.to_millis(when)
        row = await self.db.find_by_context(self.symbol, self.strategy_name, self.exchange_name, signal_id)
        return (row.payload or {}) if row is not None and row.when <= horizon else {}

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When | None = None) -> None:
        """Replace what is known of the signal; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(
            *self.db.content(self.symbol, self.strategy_name, self.exchange_name, signal_id, data, when)
        )


BREAKEVEN = Domain(
    "breakeven",
    Family.LATEST_VALUE,
    BreakevenCacheService,
    BreakevenDbService,
    PersistBreakevenInstance,
    FileLayout("data/breakeven", (("symbol", "strategy_name", "exchange_name"),), ("signal_id",)),
)
