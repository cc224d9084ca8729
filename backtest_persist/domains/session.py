"""Sessions: the free state of a strategy's run, per mode."""

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
    "SESSION",
    "PersistSessionInstance",
    "SessionCacheService",
    "SessionContext",
    "SessionDbService",
    "SessionRow",
)


class SessionContext(Context):
    """Identifies the state of a run."""

    strategy_name: Name
    exchange_name: Name
    frame_name: FrameName
    symbol: Name
    backtest: Flag

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``session_cache``."""
        return join_key(self.exchange_name, self.strategy_name, self.frame_name, self.symbol, mode_word(self.backtest))


class SessionRow(SessionContext, Row):
    """One document of ``session-items``."""

    payload: Payload | None
    when: Timestamp


class SessionCacheService(base_map("session_cache", -1)):
    """Remembers which document holds the state of a run."""

    async def has_session_id(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool | Mode
    ) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            SessionContext(
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                symbol=symbol,
                backtest=to_flag(backtest),
            ).cache_key
        )

    async def get_session_id(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool | Mode
    ) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            SessionContext(
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                symbol=symbol,
                backtest=to_flag(backtest),
            ).cache_key
        )

    async def set_session_id(self, row: SessionRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class SessionDbService(DbService[SessionContext, SessionRow]):
    """Reads and writes ``session-items``."""

    collection = "session-items"

    async def upsert(
        self,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        symbol: str,
        backtest: bool | Mode,
        payload: PayloadInput | None,
        when: When | None = None,
    ) -> SessionRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(
            *self.content(strategy_name, exchange_name, frame_name, symbol, backtest, payload, when)
        )

    def content(
        self,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        symbol: str,
        backtest: bool | Mode,
        payload: PayloadInput | None,
        when: When | None,
    ) -> Content[SessionContext]:
        """Return the context and the fields that a write stores."""
        context = SessionContext(
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=frame_name,
            symbol=symbol,
            backtest=to_flag(backtest),
        )
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool | Mode
    ) -> SessionRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(
            SessionContext(
                strategy_name=strategy_name,
                exchange_name=exchange_name,
                frame_name=frame_name,
                symbol=symbol,
                backtest=to_flag(backtest),
            )
        )


class PersistSessionInstance(PersistInstance[SessionDbService]):
    """Keeps the state of a run; paper and live are `backtest=False`."""

    def __init__(
        self,
        strategy_name: str,
        exchange_name: str,
        frame_name: str,
        symbol: str,
        backtest: bool | Mode,
        *,
        ioc: Services | None = None,
    ) -> None:
        super().__init__(ioc)
        self.strategy_name = strategy_name
        self.exchange_name = exchange_name
        self.frame_name = frame_name
        self.symbol = symbol
        self.backtest = to_flag(backtest)

    async def read_session_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(
            self.strategy_name, self.exchange_name, self.frame_name, self.symbol, self.backtest
        )
        return row.payload if row is not None and row.when <= horizon else None

    async def write_session_data(self, data: PayloadInput | None, when: When | None = None) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(
            *self.db.content(
                self.strategy_name, self.exchange_name, self.frame_name, self.symbol, self.backtest, data, when
            )
        )

    async def dispose(self) -> None:
        """Let the registry forget this adapter; what is stored stays, and the adapter can still be used."""
        self._dispose()


SESSION = Domain(
    "session",
    Family.LATEST_VALUE,
    SessionCacheService,
    SessionDbService,
    PersistSessionInstance,
    FileLayout(
        "session",
        (("strategy_name",), ("exchange_name",), ("frame_name",)),
        ("symbol", "backtest"),
        stated_by="when",
    ),
)
