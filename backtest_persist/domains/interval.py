"""Intervals: markers of what has been done once per interval, by bucket and key."""

from collections.abc import AsyncIterator
from typing import Protocol

from pymongo import ASCENDING

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.keys import Name, Timestamp, checked_name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.core.row import Context, to_horizon, wire_when
from backtest_persist.core.soft_delete import RemovableRow, SoftDeleteDbService, living_payload

__all__ = (
    "IntervalCacheService",
    "IntervalContext",
    "IntervalDbService",
    "IntervalRow",
    "IntervalServices",
    "PersistIntervalInstance",
)


class IntervalContext(Context):
    """Identifies the marker of an interval."""

    bucket: Name
    entry_key: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``interval_cache``."""
        return join_key(self.bucket, self.entry_key)


class IntervalRow(IntervalContext, RemovableRow):
    """One document of ``interval-items``."""

    when: Timestamp


class IntervalCacheService(base_map("interval_cache", -1)):
    """Remembers which document holds the marker of an interval."""

    async def has_interval_id(self, bucket: str, entry_key: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(IntervalContext(bucket=bucket, entry_key=entry_key).cache_key)

    async def get_interval_id(self, bucket: str, entry_key: str) -> str | None:
        """The id that Redis knows for this context, or None."""
        return await self.get(IntervalContext(bucket=bucket, entry_key=entry_key).cache_key)

    async def set_interval_id(self, row: IntervalRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class IntervalDbService(SoftDeleteDbService[IntervalContext, IntervalRow]):
    """Reads and writes ``interval-items``."""

    collection = "interval-items"
    secondary_indexes = ((("bucket", ASCENDING), ("removed", ASCENDING)),)
    context_type = IntervalContext
    row_type = IntervalRow

    async def upsert(self, bucket: str, entry_key: str, payload: PayloadInput | None, when: When) -> IntervalRow:
        """Replace the payload in one atomic write, which revives a removed entry; `when` is the simulation time."""
        context = IntervalContext(bucket=bucket, entry_key=entry_key)
        return await self._upsert(context, {**self._live_fields(payload, context), "when": wire_when(when)})

    async def find_by_context(self, bucket: str, entry_key: str) -> IntervalRow | None:
        """The row of this context, or None."""
        return await self._find(IntervalContext(bucket=bucket, entry_key=entry_key))

    async def soft_remove(self, bucket: str, entry_key: str) -> bool:
        """Turn the entry into a tombstone; False when there is none."""
        return await self._soft_remove(IntervalContext(bucket=bucket, entry_key=entry_key))

    async def list_keys(self, bucket: str, *, when: When | None = None) -> list[str]:
        """The keys of a bucket that are not removed, oldest first; with `when`, only those written by then."""
        horizon = to_horizon(when)
        rows = await self._living({"bucket": checked_name(bucket, "bucket")})
        return [row.entry_key for row in rows if row.when <= horizon]

    async def clear_bucket(self, bucket: str) -> int:
        """Delete the documents of a bucket, tombstones too; returns how many. Their ids in Redis match nothing then."""
        return await self._delete_many({"bucket": checked_name(bucket, "bucket")})


class IntervalServices(Protocol):
    """What the adapter needs of a container."""

    @property
    def interval_db_service(self) -> IntervalDbService:
        """The db service of this domain."""
        ...


class PersistIntervalInstance(PersistInstance[IntervalServices]):
    """Keeps the markers of one bucket."""

    def __init__(self, bucket: str, *, ioc: IntervalServices | None = None) -> None:
        super().__init__(ioc)
        self.bucket = bucket

    async def wait_for_init(self, initial: bool) -> None:
        """Verify the indexes of this domain when `initial`; may be called again, also after a failure."""
        if initial:
            await self._services.interval_db_service.wait_for_init()

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """The marker, or None when absent, removed, or not yet written at `when` (aware datetime, or ms UTC)."""
        horizon = to_horizon(when)
        row = await self._services.interval_db_service.find_by_context(self.bucket, key)
        return living_payload(row) if row is not None and row.when <= horizon else None

    async def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without what is removed or later than `when`."""
        for key in await self._services.interval_db_service.list_keys(self.bucket, when=when):
            yield key

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When) -> None:
        """Replace the marker; revives a removed one. An earlier `when` overwrites."""
        await self._services.interval_db_service.upsert(self.bucket, key, data, when)

    async def remove_interval_data(self, key: str) -> None:
        """Remove the marker from reads and lists; nothing happens when it is absent."""
        await self._services.interval_db_service.soft_remove(self.bucket, key)
