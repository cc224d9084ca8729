"""States: the free state of a signal, by bucket."""

from typing import Protocol

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.core.row import Context, Row, to_horizon, wire_when

__all__ = ("PersistStateInstance", "StateCacheService", "StateContext", "StateDbService", "StateRow", "StateServices")


class StateContext(Context):
    """Identifies the state of a signal."""

    signal_id: Name
    bucket_name: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``state_cache``."""
        return join_key(self.signal_id, self.bucket_name)


class StateRow(StateContext, Row):
    """One document of ``state-items``."""

    payload: Payload | None
    when: Timestamp


class StateCacheService(base_map("state_cache", -1)):
    """Remembers which document holds the state of a signal."""

    async def has_state_id(self, signal_id: str, bucket_name: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(StateContext(signal_id=signal_id, bucket_name=bucket_name).cache_key)

    async def get_state_id(self, signal_id: str, bucket_name: str) -> str | None:
        """The id that Redis knows for this context, or None."""
        return await self.get(StateContext(signal_id=signal_id, bucket_name=bucket_name).cache_key)

    async def set_state_id(self, row: StateRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class StateDbService(DbService[StateContext, StateRow]):
    """Reads and writes ``state-items``."""

    collection = "state-items"
    context_type = StateContext
    row_type = StateRow

    async def upsert(self, signal_id: str, bucket_name: str, payload: PayloadInput | None, when: When) -> StateRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        context = StateContext(signal_id=signal_id, bucket_name=bucket_name)
        return await self._upsert(context, {"payload": self._encode(payload, context), "when": wire_when(when)})

    async def find_by_context(self, signal_id: str, bucket_name: str) -> StateRow | None:
        """The row of this context, or None."""
        return await self._find(StateContext(signal_id=signal_id, bucket_name=bucket_name))


class StateServices(Protocol):
    """What the adapter needs of a container."""

    @property
    def state_db_service(self) -> StateDbService:
        """The db service of this domain."""
        ...


class PersistStateInstance(PersistInstance[StateServices]):
    """Keeps the state of a signal in a bucket."""

    def __init__(self, signal_id: str, bucket_name: str, *, ioc: StateServices | None = None) -> None:
        super().__init__(ioc)
        self.signal_id = signal_id
        self.bucket_name = bucket_name

    async def wait_for_init(self, initial: bool) -> None:
        """Verify the indexes of this domain when `initial`; may be called again, also after a failure."""
        if initial:
            await self._services.state_db_service.wait_for_init()

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        horizon = to_horizon(when)
        row = await self._services.state_db_service.find_by_context(self.signal_id, self.bucket_name)
        return row.payload if row is not None and row.when <= horizon else None

    async def write_state_data(self, data: PayloadInput | None, when: When) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        await self._services.state_db_service.upsert(self.signal_id, self.bucket_name, data, when)

    async def dispose(self) -> None:
        """Let go of the instance: what is stored stays, and nothing is held here that needs closing."""
