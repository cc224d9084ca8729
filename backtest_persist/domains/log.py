"""Log: the decisions of a strategy, append-only."""

from collections.abc import Iterable

from pymongo import DESCENDING

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.keys import Name, checked_limit, join_key
from backtest_persist.core.payload import Payload, encode_entries
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = ("LOG", "LogCacheService", "LogContext", "LogDbService", "LogRow", "PersistLogInstance")


class LogContext(Context):
    """Identifies a log entry."""

    entry_id: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``log_cache``."""
        return join_key(self.entry_id)


class LogRow(LogContext, Row):
    """One document of ``log-items``."""

    payload: Payload


class LogCacheService(base_map("log_cache", -1)):
    """Remembers which document holds a log entry."""

    async def has_log_id(self, entry_id: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(LogContext(entry_id=entry_id).cache_key)

    async def get_log_id(self, entry_id: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(LogContext(entry_id=entry_id).cache_key)

    async def set_log_id(self, row: LogRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class LogDbService(DbService[LogContext, LogRow]):
    """Reads and writes ``log-items``."""

    collection = "log-items"
    secondary_indexes = ((("createDate", DESCENDING),),)

    async def upsert(self, entry_id: str, payload: PayloadInput) -> LogRow:
        """Replace the payload in one atomic write."""
        context = LogContext(entry_id=entry_id)
        return await self.store.upsert(context, {"payload": self.encoded_entry(payload, context)})

    async def create_many(self, entries: Iterable[PayloadInput]) -> int:
        """Append entries, each under its own ``id``, in bulk; an existing id is skipped. Returns how many were new."""
        encoded = encode_entries(entries, self.collection, first_wins=True)
        writes = [(LogContext(entry_id=entry_id), {"payload": payload}) for entry_id, payload in encoded.items()]
        return await self.store.upsert_many(writes, replace=False)

    async def list_all(self, limit: int | None = None) -> RowList[LogRow]:
        """All entries, or the newest `limit`; oldest first."""
        return await self.store.select({}, newest=None if limit is None else checked_limit(limit))

    async def find_by_context(self, entry_id: str) -> LogRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(LogContext(entry_id=entry_id))


class PersistLogInstance(PersistInstance[LogDbService]):
    """Keeps the log of decisions."""

    def __init__(self, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)

    async def read_log_data(self) -> list[Payload]:
        """The payloads of all entries, oldest first."""
        return [row.payload for row in await self.db.list_all()]

    async def write_log_data(self, entries: Iterable[PayloadInput]) -> None:
        """Append entries, each with an ``id``; one that exists is left as it is."""
        await self.db.create_many(entries)


LOG = Domain(
    "log",
    Family.LIST,
    LogCacheService,
    LogDbService,
    PersistLogInstance,
    FileLayout("data/log/log", (), ("entry_id",)),
    append_only=True,
)
