"""States: the free state of a signal, by bucket."""

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = ("STATE", "PersistStateInstance", "StateCacheService", "StateContext", "StateDbService", "StateRow")


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
        """Return the id that Redis knows for this context, or None."""
        return await self.get(StateContext(signal_id=signal_id, bucket_name=bucket_name).cache_key)

    async def set_state_id(self, row: StateRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class StateDbService(DbService[StateContext, StateRow]):
    """Reads and writes ``state-items``."""

    collection = "state-items"

    async def upsert(
        self, signal_id: str, bucket_name: str, payload: PayloadInput | None, when: When | None = None
    ) -> StateRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(*self.content(signal_id, bucket_name, payload, when))

    def content(
        self, signal_id: str, bucket_name: str, payload: PayloadInput | None, when: When | None
    ) -> Content[StateContext]:
        """Return the context and the fields that a write stores."""
        context = StateContext(signal_id=signal_id, bucket_name=bucket_name)
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(self, signal_id: str, bucket_name: str) -> StateRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(StateContext(signal_id=signal_id, bucket_name=bucket_name))


class PersistStateInstance(PersistInstance[StateDbService]):
    """Keeps the state of a signal in a bucket."""

    def __init__(self, signal_id: str, bucket_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.signal_id = signal_id
        self.bucket_name = bucket_name

    async def read_state_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.signal_id, self.bucket_name)
        return row.payload if row is not None and row.when <= horizon else None

    async def write_state_data(self, data: PayloadInput | None, when: When | None = None) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(*self.db.content(self.signal_id, self.bucket_name, data, when))

    async def dispose(self) -> None:
        """Let the registry forget this adapter; what is stored stays, and the adapter can still be used."""
        self._dispose()


STATE = Domain(
    "state",
    Family.LATEST_VALUE,
    StateCacheService,
    StateDbService,
    PersistStateInstance,
    FileLayout("state", (("signal_id",), ("bucket_name",)), ("bucket_name",), stated_by="when"),
)
