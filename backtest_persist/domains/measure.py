"""Measures: cached answers of outside services, by bucket and key."""

from collections.abc import AsyncIterator

from pymongo import ASCENDING

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, checked_name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context
from backtest_persist.core.soft_delete import RemovableRow, SoftDeleteDbService, living_payload

__all__ = (
    "MEASURE",
    "MeasureCacheService",
    "MeasureContext",
    "MeasureDbService",
    "MeasureRow",
    "PersistMeasureInstance",
)


class MeasureContext(Context):
    """Identifies a cached answer."""

    bucket: Name
    entry_key: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``measure_cache``."""
        return join_key(self.bucket, self.entry_key)


class MeasureRow(MeasureContext, RemovableRow):
    """One document of ``measure-items``."""


class MeasureCacheService(base_map("measure_cache", -1)):
    """Remembers which document holds a cached answer."""

    async def has_measure_id(self, bucket: str, entry_key: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(MeasureContext(bucket=bucket, entry_key=entry_key).cache_key)

    async def get_measure_id(self, bucket: str, entry_key: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(MeasureContext(bucket=bucket, entry_key=entry_key).cache_key)

    async def set_measure_id(self, row: MeasureRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class MeasureDbService(SoftDeleteDbService[MeasureContext, MeasureRow]):
    """Reads and writes ``measure-items``."""

    collection = "measure-items"
    secondary_indexes = ((("bucket", ASCENDING), ("removed", ASCENDING)),)

    async def upsert(self, bucket: str, entry_key: str, payload: PayloadInput | None) -> MeasureRow:
        """Replace the payload in one atomic write, which revives a removed entry."""
        return await self.store.upsert(*self.content(bucket, entry_key, payload))

    def content(self, bucket: str, entry_key: str, payload: PayloadInput | None) -> Content[MeasureContext]:
        """Return the context and the fields that a write stores."""
        context = MeasureContext(bucket=bucket, entry_key=entry_key)
        return context, self.encoded_living(payload, context)

    async def find_by_context(self, bucket: str, entry_key: str) -> MeasureRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(MeasureContext(bucket=bucket, entry_key=entry_key))

    async def soft_remove(self, bucket: str, entry_key: str) -> bool:
        """Turn the entry into a tombstone; False when there is none."""
        return await self.store.soft_remove(MeasureContext(bucket=bucket, entry_key=entry_key))

    async def list_keys(self, bucket: str) -> list[str]:
        """The keys of a bucket that are not removed, oldest first."""
        return [row.entry_key for row in await self.store.select({"bucket": checked_name(bucket, "bucket")})]


class PersistMeasureInstance(PersistInstance[MeasureDbService]):
    """Keeps the cached answers of one bucket; exempt from look-ahead protection."""

    def __init__(self, bucket: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.bucket = bucket

    async def read_measure_data(self, key: str) -> Payload | None:
        """The answer, or None when absent or removed."""
        return living_payload(await self.db.find_by_context(self.bucket, key))

    async def list_measure_data(self) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without what is removed."""
        for key in await self.db.list_keys(self.bucket):
            yield key

    async def write_measure_data(self, data: PayloadInput | None, key: str, when: When | None = None) -> None:
        """Replace the answer; revives a removed one. `when` is checked, but not stored."""
        self.db.to_millis(when)
        await self.db.store.write(*self.db.content(self.bucket, key, data))

    async def remove_measure_data(self, key: str) -> None:
        """Remove the answer from reads and lists; nothing happens when it is absent."""
        await self.db.soft_remove(self.bucket, key)


MEASURE = Domain(
    "measure",
    Family.KEYED,
    MeasureCacheService,
    MeasureDbService,
    PersistMeasureInstance,
    FileLayout("data/measure", (("bucket",),), ("entry_key",)),
)
