"""Notifications: what happened, for people to read, one document each, per mode."""

from collections.abc import Iterable

from pymongo import ASCENDING, DESCENDING

from backtest_persist.contracts import PayloadInput
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.keys import Flag, Name, checked_flag, checked_limit, join_key, mode_word, to_flag
from backtest_persist.core.payload import Payload, encode_entries
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row
from backtest_persist.mode import Mode

__all__ = (
    "NOTIFICATION",
    "NotificationCacheService",
    "NotificationContext",
    "NotificationDbService",
    "NotificationRow",
    "PersistNotificationInstance",
)


class NotificationContext(Context):
    """Identifies a notification."""

    backtest: Flag
    notification_id: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``notification_cache``."""
        return join_key(mode_word(self.backtest), self.notification_id)


class NotificationRow(NotificationContext, Row):
    """One document of ``notification-items``."""

    payload: Payload


class NotificationCacheService(base_map("notification_cache", -1)):
    """Remembers which document holds a notification."""

    async def has_notification_id(self, backtest: bool | Mode, notification_id: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(
            NotificationContext(backtest=to_flag(backtest), notification_id=notification_id).cache_key
        )

    async def get_notification_id(self, backtest: bool | Mode, notification_id: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(
            NotificationContext(backtest=to_flag(backtest), notification_id=notification_id).cache_key
        )

    async def set_notification_id(self, row: NotificationRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class NotificationDbService(DbService[NotificationContext, NotificationRow]):
    """Reads and writes ``notification-items``."""

    collection = "notification-items"
    secondary_indexes = ((("backtest", ASCENDING), ("createDate", DESCENDING)),)

    async def upsert(self, backtest: bool | Mode, notification_id: str, payload: PayloadInput) -> NotificationRow:
        """Replace the payload in one atomic write."""
        context = NotificationContext(backtest=to_flag(backtest), notification_id=notification_id)
        return await self.store.upsert(context, {"payload": self.encoded_entry(payload, context)})

    async def upsert_many(self, backtest: bool | Mode, payloads: Iterable[PayloadInput]) -> int:
        """Write payloads in bulk, each under its own ``id``; returns how many were new."""
        checked_flag(backtest, "backtest")
        encoded = encode_entries(payloads, self.collection)
        writes = [
            (NotificationContext(backtest=to_flag(backtest), notification_id=notification_id), {"payload": payload})
            for notification_id, payload in encoded.items()
        ]
        return await self.store.upsert_many(writes, replace=True)

    async def list_by_mode(self, backtest: bool | Mode, limit: int | None = None) -> RowList[NotificationRow]:
        """All rows of a mode, or the newest `limit`; oldest first."""
        newest = None if limit is None else checked_limit(limit)
        return await self.store.select({"backtest": checked_flag(backtest, "backtest")}, newest=newest)

    async def find_by_context(self, backtest: bool | Mode, notification_id: str) -> NotificationRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(NotificationContext(backtest=to_flag(backtest), notification_id=notification_id))


class PersistNotificationInstance(PersistInstance[NotificationDbService]):
    """Keeps notifications of a mode; paper and live are `backtest=False`."""

    def __init__(self, backtest: bool | Mode, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.backtest = to_flag(backtest)

    async def read_notification_data(self) -> list[Payload]:
        """The payloads of all notifications, oldest first."""
        return [row.payload for row in await self.db.list_by_mode(self.backtest)]

    async def write_notification_data(self, notifications: Iterable[PayloadInput]) -> None:
        """Write notifications, each under its own ``id``; what is not among them stays."""
        await self.db.upsert_many(self.backtest, notifications)


NOTIFICATION = Domain(
    "notification",
    Family.LIST,
    NotificationCacheService,
    NotificationDbService,
    PersistNotificationInstance,
    FileLayout("data/notification", (("backtest",),), ("notification_id",)),
)
