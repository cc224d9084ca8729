"""Breakevens: whether the stop of a signal has been moved to its entry price."""

from typing import Protocol

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.core.row import Context, Row, to_millis, wire_when

__all__ = (
    "BreakevenCacheService",
    "BreakevenContext",
    "BreakevenDbService",
    "BreakevenRow",
    "BreakevenServices",
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
        """The id that Redis knows for this context, or None."""
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
    context_type = BreakevenContext
    row_type = BreakevenRow

    async def upsert(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        signal_id: str,
        payload: PayloadInput | None,
        when: When,
    ) -> BreakevenRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        context = BreakevenContext(
            symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
        )
        return await self._upsert(context, {"payload": self._encode(payload, context), "when": wire_when(when)})

    async def find_by_context(
        self, symbol: str, strategy_name: str, exchange_name: str, signal_id: str
    ) -> BreakevenRow | None:
        """The row of this context, or None."""
        return await self._find(
            BreakevenContext(
                symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name, signal_id=signal_id
            )
        )


class BreakevenServices(Protocol):
    """What the adapter needs of a container."""

    @property
    def breakeven_db_service(self) -> BreakevenDbService:
        """The db service of this domain."""
        ...


class PersistBreakevenInstance(PersistInstance[BreakevenServices]):
    """Keeps the breakeven mark of a signal, for the signals of a symbol, a strategy and an exchange."""

    def __init__(
        self, symbol: str, strategy_name: str, exchange_name: str, *, ioc: BreakevenServices | None = None
    ) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name

    async def wait_for_init(self, initial: bool) -> None:
        """Verify the indexes of this domain when `initial`; may be called again, also after a failure."""
        if initial:
            await self._services.breakeven_db_service.wait_for_init()

    async def read_breakeven_data(self, signal_id: str, when: When) -> Payload:
        """What was known of the signal at `when` (aware datetime, or ms UTC); {} when absent or later than that."""
        horizon = to_millis(when)
        row = await self._services.breakeven_db_service.find_by_context(
            self.symbol, self.strategy_name, self.exchange_name, signal_id
        )
        return (row.payload or {}) if row is not None and row.when <= horizon else {}

    async def write_breakeven_data(self, data: PayloadInput, signal_id: str, when: When) -> None:
        """Replace what is known of the signal; an earlier `when` overwrites, so a backtest can start over."""
        await self._services.breakeven_db_service.upsert(
            self.symbol, self.strategy_name, self.exchange_name, signal_id, data, when
        )
