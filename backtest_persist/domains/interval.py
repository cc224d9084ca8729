"""Intervals: markers of what has been done once per interval, by bucket and key."""

from collections.abc import AsyncIterator

from pymongo import ASCENDING

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, checked_name, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context
from backtest_persist.core.soft_delete import RemovableRow, SoftDeleteDbService, living_payload

__all__ = (
    "INTERVAL",
    "IntervalCacheService",
    "IntervalContext",
    "IntervalDbService",
    "IntervalRow",
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
        """Return the id that Redis knows for this context, or None."""
        return await self.get(IntervalContext(bucket=bucket, entry_key=entry_key).cache_key)

    async def set_interval_id(self, row: IntervalRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class IntervalDbService(SoftDeleteDbService[IntervalContext, IntervalRow]):
    """Reads and writes ``interval-items``."""

    collection = "interval-items"
    secondary_indexes = ((("bucket", ASCENDING), ("removed", ASCENDING)),)

    async def upsert(
        self, bucket: str, entry_key: str, payload: PayloadInput | None, when: When | None = None
    ) -> IntervalRow:
        """Replace the payload in one atomic write, which revives a removed entry; `when` is the simulation time."""
        return await self.store.upsert(*self.content(bucket, entry_key, payload, when))

    def content(
        self, bucket: str, entry_key: str, payload: PayloadInput | None, when: When | None
    ) -> Content[IntervalContext]:
        """Return the context and the fields that a write stores."""
        context = IntervalContext(bucket=bucket, entry_key=entry_key)
        return context, {**self.encoded_living(payload, context), "when": self.wire_when(when)}

    async def claim(self, bucket: str, entry_key: str, payload: PayloadInput, when: When | None = None) -> bool:
        """Write the entry unless there is one that is not removed: True for exactly one caller, of any process.

        After a `WriteOutcomeUnknownError` nobody knows who has it, unless the payload tells; a claim that is repeated
        then is False if the first one was stored.
        """
        context = IntervalContext(bucket=bucket, entry_key=entry_key)
        return await self.store.claim(context, {**self.encoded_claim(payload, context), "when": self.wire_when(when)})

    async def find_by_context(self, bucket: str, entry_key: str) -> IntervalRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(IntervalContext(bucket=bucket, entry_key=entry_key))

    async def soft_remove(self, bucket: str, entry_key: str) -> bool:
        """Turn the entry into a tombstone; False when there is none."""
        return await self.store.soft_remove(IntervalContext(bucket=bucket, entry_key=entry_key))

    async def list_keys(self, bucket: str, *, when: When | None = None) -> list[str]:
        """The keys of a bucket that are not removed, oldest first; with `when`, only those written by then."""
        horizon = self.to_horizon(when)
        rows = await self.store.select({"bucket": checked_name(bucket, "bucket")})
        return [row.entry_key for row in rows if row.when <= horizon]

    async def clear_bucket(self, bucket: str) -> int:
        """Delete the documents of a bucket, tombstones too; returns how many. Their ids in Redis match nothing then."""
        name = checked_name(bucket, "bucket")
        return await self.mongo_store.delete_many({"bucket": name})


class PersistIntervalInstance(PersistInstance[IntervalDbService]):
    """Keeps the markers of one bucket."""

    def __init__(self, bucket: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.bucket = bucket

    async def read_interval_data(self, key: str, *, when: When | None = None) -> Payload | None:
        """The marker, or None when absent, removed, or not yet written at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.bucket, key)
        return living_payload(row) if row is not None and row.when <= horizon else None

    async def list_interval_data(self, *, when: When | None = None) -> AsyncIterator[str]:
        """Iterate over the keys of the bucket, oldest first, without what is removed or later than `when`."""
        for key in await self.db.list_keys(self.bucket, when=when):
            yield key

    async def write_interval_data(self, data: PayloadInput | None, key: str, when: When | None = None) -> None:
        """Replace the marker; revives a removed one. An earlier `when` overwrites."""
        await self.db.store.write(*self.db.content(self.bucket, key, data, when))

    async def claim_interval_data(self, data: PayloadInput, key: str, when: When | None = None) -> bool:
        """Write the marker unless there is one: True for exactly one caller, of any process, until it is removed."""
        return await self.db.claim(self.bucket, key, data, when)

    async def remove_interval_data(self, key: str) -> None:
        """Remove the marker from reads and lists; nothing happens when it is absent."""
        await self.db.soft_remove(self.bucket, key)


INTERVAL = Domain(
    "interval",
    Family.KEYED,
    IntervalCacheService,
    IntervalDbService,
    PersistIntervalInstance,
    FileLayout("data/interval", (("bucket",),), ("entry_key",), stated_by="when"),
    deletes=True,
)
