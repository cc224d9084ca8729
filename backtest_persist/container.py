"""Container: thirty services over one MongoDB and one Redis, one line each."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from backtest_persist.connections import MongoService, RedisService, uncancelled
from backtest_persist.core.db_service import DbService
from backtest_persist.domains.breakeven import BreakevenCacheService, BreakevenDbService
from backtest_persist.domains.candle import CandleCacheService, CandleDbService
from backtest_persist.domains.interval import IntervalCacheService, IntervalDbService
from backtest_persist.domains.log import LogCacheService, LogDbService
from backtest_persist.domains.measure import MeasureCacheService, MeasureDbService
from backtest_persist.domains.memory import MemoryCacheService, MemoryDbService
from backtest_persist.domains.notification import NotificationCacheService, NotificationDbService
from backtest_persist.domains.partial import PartialCacheService, PartialDbService
from backtest_persist.domains.recent import RecentCacheService, RecentDbService
from backtest_persist.domains.risk import RiskCacheService, RiskDbService
from backtest_persist.domains.schedule import ScheduleCacheService, ScheduleDbService
from backtest_persist.domains.session import SessionCacheService, SessionDbService
from backtest_persist.domains.signal import SignalCacheService, SignalDbService
from backtest_persist.domains.state import StateCacheService, StateDbService
from backtest_persist.domains.storage import StorageCacheService, StorageDbService
from backtest_persist.errors import SettingsError
from backtest_persist.logger import LoggerService
from backtest_persist.settings import Settings, load

__all__ = ("Container",)


class Container:
    """Holds the services of one pair of servers; opens clients on first use and closes what it opened.

    ``async with Container(settings) as container:`` verifies all indexes on entry. Building one, or touching an
    attribute, does no I/O and needs no event loop. It stays in its process: pickling it, or a service of it, is a
    `SettingsError`. An injected client stays open when the container closes: a Motor client or PyMongo's
    `AsyncMongoClient`, a `redis.asyncio.Redis` with ``decode_responses=False``.
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, Any] | None = None,
        *,
        mongo_client: Any = None,
        redis_client: Any = None,
    ) -> None:
        self._given = settings
        self._settings: Settings | None = None
        self.logger_service = LoggerService()
        self.mongo_service = MongoService(self._read_settings, self.logger_service, mongo_client)
        self.redis_service = RedisService(self._read_settings, self.logger_service, redis_client)
        mongo, redis = self.mongo_service, self.redis_service

        self.breakeven_cache_service = BreakevenCacheService(redis)
        self.candle_cache_service = CandleCacheService(redis)
        self.interval_cache_service = IntervalCacheService(redis)
        self.log_cache_service = LogCacheService(redis)
        self.measure_cache_service = MeasureCacheService(redis)
        self.memory_cache_service = MemoryCacheService(redis)
        self.notification_cache_service = NotificationCacheService(redis)
        self.partial_cache_service = PartialCacheService(redis)
        self.recent_cache_service = RecentCacheService(redis)
        self.risk_cache_service = RiskCacheService(redis)
        self.schedule_cache_service = ScheduleCacheService(redis)
        self.session_cache_service = SessionCacheService(redis)
        self.signal_cache_service = SignalCacheService(redis)
        self.state_cache_service = StateCacheService(redis)
        self.storage_cache_service = StorageCacheService(redis)

        self.breakeven_db_service = BreakevenDbService(mongo, redis, self.breakeven_cache_service)
        self.candle_db_service = CandleDbService(mongo, redis, self.candle_cache_service)
        self.interval_db_service = IntervalDbService(mongo, redis, self.interval_cache_service)
        self.log_db_service = LogDbService(mongo, redis, self.log_cache_service)
        self.measure_db_service = MeasureDbService(mongo, redis, self.measure_cache_service)
        self.memory_db_service = MemoryDbService(mongo, redis, self.memory_cache_service)
        self.notification_db_service = NotificationDbService(mongo, redis, self.notification_cache_service)
        self.partial_db_service = PartialDbService(mongo, redis, self.partial_cache_service)
        self.recent_db_service = RecentDbService(mongo, redis, self.recent_cache_service)
        self.risk_db_service = RiskDbService(mongo, redis, self.risk_cache_service)
        self.schedule_db_service = ScheduleDbService(mongo, redis, self.schedule_cache_service)
        self.session_db_service = SessionDbService(mongo, redis, self.session_cache_service)
        self.signal_db_service = SignalDbService(mongo, redis, self.signal_cache_service)
        self.state_db_service = StateDbService(mongo, redis, self.state_cache_service)
        self.storage_db_service = StorageDbService(mongo, redis, self.storage_cache_service)

    @property
    def settings(self) -> Settings:
        """The settings in force; the environment is read on first use."""
        return self._read_settings()

    @property
    def db_services(self) -> tuple[DbService[Any, Any], ...]:
        """The fifteen db services."""
        services = (
            self.breakeven_db_service,
            self.candle_db_service,
            self.interval_db_service,
            self.log_db_service,
            self.measure_db_service,
            self.memory_db_service,
            self.notification_db_service,
            self.partial_db_service,
            self.recent_db_service,
            self.risk_db_service,
            self.schedule_db_service,
            self.session_db_service,
            self.signal_db_service,
            self.state_db_service,
            self.storage_db_service,
        )
        return cast("tuple[DbService[Any, Any], ...]", services)

    def configure(self, settings: Settings | Mapping[str, Any] | None = None) -> None:
        """Take other settings (None: the environment) from the next operation on; reopens a closed container.

        Clients of the former settings are closed with their event loop, or by `close`.
        """
        self._settings = load(settings)
        self.mongo_service.reconfigure()
        self.redis_service.reconfigure()

    async def wait_for_init(self) -> None:
        """Create and verify the indexes of all fifteen collections; done once per client, retryable.

        Raises `IndexConflictError` or `StoreUnavailableError`. Redis may be down: it is only an index.
        """
        for service in self.db_services:
            await service.wait_for_init()

    async def close(self) -> None:
        """Close the clients of the running event loop that were opened here; a second call does nothing.

        Operations under way are waited for, for ``CC_MONGO_TIMEOUT_MS`` at most; later ones raise `ClosedError`.
        """
        await uncancelled(self._close)

    async def _close(self) -> None:
        try:
            await self.mongo_service.close()
        finally:
            await self.redis_service.close(reopened=not self.mongo_service.closed)

    async def __aenter__(self) -> Self:
        try:
            await self.wait_for_init()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: clients belong to one process, and settings that were given as a mapping are plain text."""
        raise SettingsError("A container is not pickled, nor its services; open one in the other process.")

    def _read_settings(self) -> Settings:
        if self._settings is None:
            self._settings = load(self._given)
        return self._settings
