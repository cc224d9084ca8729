"""Memories: what a strategy remembers about a signal, by bucket and id."""

from collections.abc import AsyncIterator

from pymongo import ASCENDING

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.keys import Name, Timestamp, checked_name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context
from backtest_persist.core.soft_delete import RemovableRow, SoftDeleteDbService, living_payload

__all__ = (
    "MEMORY",
    "MemoryCacheService",
    "MemoryContext",
    "MemoryDbService",
    "MemoryRow",
    "PersistMemoryInstance",
)


class MemoryContext(Context):
    """Identifies a memory."""

    signal_id: Name
    bucket_name: Name
    memory_id: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``memory_cache``."""
        return join_key(self.signal_id, self.bucket_name, self.memory_id)


class MemoryRow(MemoryContext, RemovableRow):
    """One document of ``memory-items``."""

    when: Timestamp


class MemoryCacheService(base_map("memory_cache", -1)):
    """Remembers which document holds a memory."""

    async def has_memory_id(self, signal_id: str, bucket_name: str, memory_id: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            MemoryContext(signal_id=signal_id, bucket_name=bucket_name, memory_id=memory_id).cache_key
        )

    async def get_memory_id(self, signal_id: str, bucket_name: str, memory_id: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            MemoryContext(signal_id=signal_id, bucket_name=bucket_name, memory_id=memory_id).cache_key
        )

    async def set_memory_id(self, row: MemoryRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class MemoryDbService(SoftDeleteDbService[MemoryContext, MemoryRow]):
    """Reads and writes ``memory-items``."""

    collection = "memory-items"
    secondary_indexes = ((("signalId", ASCENDING), ("bucketName", ASCENDING), ("removed", ASCENDING)),)

    async def upsert(
        self, signal_id: str, bucket_name: str, memory_id: str, payload: PayloadInput | None, when: When | None = None
    ) -> MemoryRow:
        """Replace the payload in one atomic write, which revives a removed entry; `when` is the simulation time."""
        return await self.store.upsert(*self.content(signal_id, bucket_name, memory_id, payload, when))

    def content(
        self, signal_id: str, bucket_name: str, memory_id: str, payload: PayloadInput | None, when: When | None
    ) -> Content[MemoryContext]:
        """Return the context and the fields that a write stores."""
        context = MemoryContext(signal_id=signal_id, bucket_name=bucket_name, memory_id=memory_id)
        return context, {**self.encoded_living(payload, context), "when": self.wire_when(when)}

    async def find_by_context(self, signal_id: str, bucket_name: str, memory_id: str) -> MemoryRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(MemoryContext(signal_id=signal_id, bucket_name=bucket_name, memory_id=memory_id))

    async def soft_remove(self, signal_id: str, bucket_name: str, memory_id: str) -> bool:
        """Turn the entry into a tombstone; False when there is none."""
        return await self.store.soft_remove(
            MemoryContext(signal_id=signal_id, bucket_name=bucket_name, memory_id=memory_id)
        )

    async def list_entries(self, signal_id: str, bucket_name: str) -> RowList[MemoryRow]:
        """The rows of a bucket that are not removed, oldest first."""
        return await self.store.select(
            {"signal_id": checked_name(signal_id, "signal_id"), "bucket_name": checked_name(bucket_name, "bucket_name")}
        )

    async def has_memory_entry(self, signal_id: str, bucket_name: str, memory_id: str) -> bool:
        """Whether MongoDB holds the entry; a removed one counts."""
        return await self.find_by_context(signal_id, bucket_name, memory_id) is not None


class PersistMemoryInstance(PersistInstance[MemoryDbService]):
    """Keeps what a strategy remembers about a signal."""

    def __init__(self, signal_id: str, bucket_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.signal_id = signal_id
        self.bucket_name = bucket_name

    async def read_memory_data(self, memory_id: str, *, when: When | None = None) -> Payload | None:
        """The memory, or None when absent, removed, or not yet written at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.signal_id, self.bucket_name, memory_id)
        return living_payload(row) if row is not None and row.when <= horizon else None

    async def has_memory_data(self, memory_id: str, *, when: When | None = None) -> bool:
        """Whether the memory was ever written (by `when`); a removed one counts."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.signal_id, self.bucket_name, memory_id)
        return row is not None and row.when <= horizon

    async def list_memory_data(self, *, when: When | None = None) -> AsyncIterator[tuple[str, Payload | None]]:
        """Iterate over (memory_id, data), oldest first, without what is removed or later than `when`."""
        horizon = self.db.to_horizon(when)
        for row in await self.db.list_entries(self.signal_id, self.bucket_name):
            if row.when <= horizon:
                yield row.memory_id, row.payload

    async def write_memory_data(self, data: PayloadInput | None, memory_id: str, when: When | None = None) -> None:
        """Replace the memory; revives a removed one. An earlier `when` overwrites."""
        db = self.db
        await db.store.write(*db.content(self.signal_id, self.bucket_name, memory_id, data, when))

    async def remove_memory_data(self, memory_id: str) -> None:
        """Remove the memory from reads and lists; nothing happens when it is absent."""
        await self.db.soft_remove(self.signal_id, self.bucket_name, memory_id)

    async def dispose(self) -> None:
        """Let the registry forget this adapter; what is stored stays, and the adapter can still be used."""
        self._dispose()


MEMORY = Domain(
    "memory",
    Family.KEYED,
    MemoryCacheService,
    MemoryDbService,
    PersistMemoryInstance,
    FileLayout("memory", (("signal_id",), ("bucket_name",)), ("memory_id",), stated_by="when"),
)
