"""Schedules: the one signal that waits for its price, of a symbol, a strategy and an exchange."""

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = (
    "SCHEDULE",
    "PersistScheduleInstance",
    "ScheduleCacheService",
    "ScheduleContext",
    "ScheduleDbService",
    "ScheduleRow",
)


class ScheduleContext(Context):
    """Identifies the pending signal of a context."""

    symbol: Name
    strategy_name: Name
    exchange_name: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``schedule_cache``."""
        return join_key(self.exchange_name, self.strategy_name, self.symbol)


class ScheduleRow(ScheduleContext, Row):
    """One document of ``schedule-items``."""

    payload: Payload | None


class ScheduleCacheService(base_map("schedule_cache", -1)):
    """Remembers which document holds the pending signal of a context."""

    async def has_schedule_id(self, symbol: str, strategy_name: str, exchange_name: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            ScheduleContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name).cache_key
        )

    async def get_schedule_id(self, symbol: str, strategy_name: str, exchange_name: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            ScheduleContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name).cache_key
        )

    async def set_schedule_id(self, row: ScheduleRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class ScheduleDbService(DbService[ScheduleContext, ScheduleRow]):
    """Reads and writes ``schedule-items``."""

    collection = "schedule-items"

    async def upsert(
        self, symbol: str, strategy_name: str, exchange_name: str, payload: PayloadInput | None
    ) -> ScheduleRow:
        """Replace the payload in one atomic write; None means that nothing is open."""
        return await self.store.upsert(*self.content(symbol, strategy_name, exchange_name, payload))

    def content(
        self, symbol: str, strategy_name: str, exchange_name: str, payload: PayloadInput | None
    ) -> Content[ScheduleContext]:
        """Return the context and the fields that a write stores."""
        context = ScheduleContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        return context, {"payload": self.encoded(payload, context)}

    async def find_by_context(self, symbol: str, strategy_name: str, exchange_name: str) -> ScheduleRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            ScheduleContext(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)
        )


class PersistScheduleInstance(PersistInstance[ScheduleDbService]):
    """Keeps the pending signal of a symbol, a strategy and an exchange across restarts."""

    def __init__(self, symbol: str, strategy_name: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name

    async def read_schedule_data(self) -> Payload | None:
        """The payload, or None when nothing is open."""
        row = await self.db.find_by_context(self.symbol, self.strategy_name, self.exchange_name)
        return None if row is None else row.payload

    async def write_schedule_data(self, row: PayloadInput | None) -> None:
        """Replace the payload; None says that nothing is open any more."""
        await self.db.store.write(*self.db.content(self.symbol, self.strategy_name, self.exchange_name, row))


SCHEDULE = Domain(
    "schedule",
    Family.LATEST_VALUE,
    ScheduleCacheService,
    ScheduleDbService,
    PersistScheduleInstance,
    FileLayout("data/schedule", (("symbol", "strategy_name", "exchange_name"),), ("symbol",)),
)
