"""Recents: the latest public signal of a context, per mode."""

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Flag, FrameName, Name, Timestamp, join_key, mode_word, to_flag
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row
from backtest_persist.mode import Mode

__all__ = (
    "RECENT",
    "PersistRecentInstance",
    "RecentCacheService",
    "RecentContext",
    "RecentDbService",
    "RecentRow",
)


class RecentContext(Context):
    """Identifies the latest public signal of a context."""

    symbol: Name
    strategy_name: Name
    exchange_name: Name
    frame_name: FrameName
    backtest: Flag

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``recent_cache``."""
        return join_key(mode_word(self.backtest), self.exchange_name, self.strategy_name, self.frame_name, self.symbol)


class RecentRow(RecentContext, Row):
    """One document of ``recent-items``."""

    payload: Payload | None
    when: Timestamp


class RecentCacheService(base_map("recent_cache", -1)):
    """Remembers which document holds the latest public signal of a context."""

    async def has_recent_id(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool | Mode
    ) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            RecentContext(
                symbol=symbol,
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                backtest=to_flag(backtest),
            ).cache_key
        )

    async def get_recent_id(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool | Mode
    ) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            RecentContext(
                symbol=symbol,
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                backtest=to_flag(backtest),
            ).cache_key
        )

    async def set_recent_id(self, row: RecentRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class RecentDbService(DbService[RecentContext, RecentRow]):
    """Reads and writes ``recent-items``."""

    collection = "recent-items"

    async def upsert(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        backtest: bool | Mode,
        payload: PayloadInput | None,
        when: When | None = None,
    ) -> RecentRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(
            *self.content(symbol, strategy_name, exchange_name, frame_name, backtest, payload, when)
        )

    def content(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        backtest: bool | Mode,
        payload: PayloadInput | None,
        when: When | None,
    ) -> Content[RecentContext]:
        """Return the context and the fields that a write stores."""
        context = RecentContext(
            symbol=symbol,
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=frame_name,
            backtest=to_flag(backtest),
        )
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool | Mode
    ) -> RecentRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            RecentContext(
                symbol=symbol,
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                backtest=to_flag(backtest),
            )
        )


class PersistRecentInstance(PersistInstance[RecentDbService]):
    """Keeps the latest public signal of a context; paper and live are `backtest=False`."""

    def __init__(
        self,
        symbol: str,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        backtest: bool | Mode,
        *,
        ioc: Services | None = None,
    ) -> None:
        super().__init__(ioc)
        self.symbol = symbol
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name
        self.frame_name = frame_name
        self.backtest = to_flag(backtest)

    async def read_recent_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(
            self.symbol, self.strategy_name, self.exchange_name, self.frame_name, self.backtest
        )
        return row.payload if row is not None and row.when <= horizon else None

    async def write_recent_data(self, row: PayloadInput | None, when: When | None = None) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(
            *self.db.content(
                self.symbol, self.strategy_name, self.exchange_name, self.frame_name, self.backtest, row, when
            )
        )


RECENT = Domain(
    "recent",
    Family.LATEST_VALUE,
    RecentCacheService,
    RecentDbService,
    PersistRecentInstance,
    FileLayout(
        "data/recent",
        (("symbol", "strategy_name", "exchange_name", "frame_name", "backtest"),),
        ("symbol",),
        stated_by="timestamp",
    ),
)
