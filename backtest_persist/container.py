"""Container: two services for each domain, over one MongoDB and one Redis, one line each."""

import asyncio
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from backtest_persist.connections import MongoService, RedisService, uncancelled
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.candles.mongo import MongoCandleStore
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain
from backtest_persist.core.lease import LEASE_SECONDS, Lease, prepare_leases
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.mongo_store import MongoStore
from backtest_persist.domains import DOMAINS, with_own
from backtest_persist.domains.breakeven import BreakevenCacheService, BreakevenDbService
from backtest_persist.domains.candle import CandleCacheService, CandleDbService
from backtest_persist.domains.dictionary import DictionaryCacheService, DictionaryDbService
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
from backtest_persist.domains.strategy import StrategyCacheService, StrategyDbService
from backtest_persist.errors import SettingsError
from backtest_persist.logger import LoggerService
from backtest_persist.mode import Mode
from backtest_persist.settings import Settings, load

__all__ = ("Container",)

_AT_ONCE = 4
"""How many collections are prepared at the same time: each costs round trips, and a connection."""

D = TypeVar("D", bound=DbService[Any, Any])
S = TypeVar("S", bound=BaseMap)


class Container:
    """Holds the services of one pair of servers; opens clients on first use and closes what it opened.

    ``async with Container(settings) as container:`` verifies all indexes on entry. Building one, or touching an
    attribute, does no I/O and needs no event loop. It stays in its process: pickling it, or a service of it, is a
    `SettingsError`. An injected client stays open when the container closes: a Motor client or PyMongo's
    `AsyncMongoClient`, a `redis.asyncio.Redis` with ``decode_responses=False``.

    `domains` are domains of your own (see `backtest_persist.extend`); their services are found by their class, with
    `db_service` and `cache_service`, and as ``<name>_db_service`` and ``<name>_cache_service``.
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, Any] | None = None,
        *,
        mongo_client: Any = None,
        redis_client: Any = None,
        domains: Iterable[Domain] = (),
    ) -> None:
        self._given = settings
        self._settings: Settings | None = None
        self.logger_service = LoggerService()
        self.mongo_service = MongoService(self._read_settings, self.logger_service, mongo_client)
        self.redis_service = RedisService(self._read_settings, self.logger_service, redis_client)
        self._cache_services: dict[type[BaseMap], BaseMap] = {}
        self._db_services: dict[type[DbService[Any, Any]], DbService[Any, Any]] = {}

        self.breakeven_cache_service = self._cache(BreakevenCacheService)
        self.candle_cache_service = self._cache(CandleCacheService)
        self.dictionary_cache_service = self._cache(DictionaryCacheService)
        self.interval_cache_service = self._cache(IntervalCacheService)
        self.log_cache_service = self._cache(LogCacheService)
        self.measure_cache_service = self._cache(MeasureCacheService)
        self.memory_cache_service = self._cache(MemoryCacheService)
        self.notification_cache_service = self._cache(NotificationCacheService)
        self.partial_cache_service = self._cache(PartialCacheService)
        self.recent_cache_service = self._cache(RecentCacheService)
        self.risk_cache_service = self._cache(RiskCacheService)
        self.schedule_cache_service = self._cache(ScheduleCacheService)
        self.session_cache_service = self._cache(SessionCacheService)
        self.signal_cache_service = self._cache(SignalCacheService)
        self.state_cache_service = self._cache(StateCacheService)
        self.storage_cache_service = self._cache(StorageCacheService)
        self.strategy_cache_service = self._cache(StrategyCacheService)

        self.breakeven_db_service = self._db(BreakevenDbService, self.breakeven_cache_service)
        self.candle_db_service = self._db(CandleDbService, self.candle_cache_service, MongoCandleStore)
        self.dictionary_db_service = self._db(DictionaryDbService, self.dictionary_cache_service)
        self.interval_db_service = self._db(IntervalDbService, self.interval_cache_service)
        self.log_db_service = self._db(LogDbService, self.log_cache_service)
        self.measure_db_service = self._db(MeasureDbService, self.measure_cache_service)
        self.memory_db_service = self._db(MemoryDbService, self.memory_cache_service)
        self.notification_db_service = self._db(NotificationDbService, self.notification_cache_service)
        self.partial_db_service = self._db(PartialDbService, self.partial_cache_service)
        self.recent_db_service = self._db(RecentDbService, self.recent_cache_service)
        self.risk_db_service = self._db(RiskDbService, self.risk_cache_service)
        self.schedule_db_service = self._db(ScheduleDbService, self.schedule_cache_service)
        self.session_db_service = self._db(SessionDbService, self.session_cache_service)
        self.signal_db_service = self._db(SignalDbService, self.signal_cache_service)
        self.state_db_service = self._db(StateDbService, self.state_cache_service)
        self.storage_db_service = self._db(StorageDbService, self.storage_cache_service)
        self.strategy_db_service = self._db(StrategyDbService, self.strategy_cache_service)

        self.domains = with_own(domains)
        """All domains of this container, those of the package first."""
        for domain in self.domains[len(DOMAINS) :]:
            cache = self._cache(domain.cache_service)
            setattr(self, f"{domain.name}_cache_service", cache)
            setattr(self, f"{domain.name}_db_service", self._db(domain.db_service, cache))

    def _cache(self, kind: type[S]) -> S:
        service = self._cache_services[kind] = kind(self.redis_service)
        return service

    def _db(self, kind: type[D], cache: BaseMap, store_type: type[MongoStore[Any, Any]] = MongoStore) -> D:
        store = store_type(kind.schema(), self.mongo_service, self.redis_service, cache)
        service = self._db_services[kind] = kind(store)
        return service

    def cache_service(self, kind: type[S], /) -> S:
        """Return the cache service of that class; `SettingsError` if there is no such domain here."""
        return cast("S", _found(self._cache_services, kind))

    def db_service(self, kind: type[D], /) -> D:
        """Return the db service of that class; `SettingsError` if there is no such domain here."""
        return cast("D", _found(self._db_services, kind))

    @property
    def settings(self) -> Settings:
        """The settings in force; the environment is read on first use."""
        return self._read_settings()

    @property
    def db_services(self) -> tuple[DbService[Any, Any], ...]:
        """The db services of all domains, in their order."""
        return tuple(self._db_services[domain.db_service] for domain in self.domains)

    def lease(
        self,
        *,
        strategy: str,
        exchange: str,
        symbol: str,
        frame: str = "",
        mode: Mode,
        wait: float = 0.0,
        duration: float = LEASE_SECONDS,
    ) -> Lease:
        """Return the lease of a run, which makes this process its one writer: ``async with ioc.lease(...) as lease:``.

        Entering waits up to `wait` s for another holder, and is a `LeaseHeldError` then. See `Lease`.
        """
        context = LeaseContext(
            strategy_name=strategy, exchange_name=exchange, symbol=symbol, frame_name=frame, mode=mode
        )
        return Lease(self, context, wait=wait, duration=duration)

    def configure(self, settings: Settings | Mapping[str, Any] | None = None) -> None:
        """Take other settings (None: the environment) from the next operation on; reopens a closed container.

        Clients of the former settings are closed with their event loop, or by `close`.
        """
        self._settings = load(settings)
        self.mongo_service.reconfigure()
        self.redis_service.reconfigure()

    async def wait_for_init(self) -> None:
        """Create and verify the indexes of all collections, several at a time; done once per client, retryable.

        Raises `IndexConflictError` or `StoreUnavailableError`. Redis may be down: it is only an index.
        """
        services = iter(self.db_services)

        async def prepare() -> None:
            for service in services:  # those that nobody else has taken
                await service.wait_for_init()

        for error in await asyncio.gather(*(prepare() for _ in range(_AT_ONCE)), return_exceptions=True):
            if error is not None:
                raise error
        await prepare_leases(self.mongo_service)

    async def close(self) -> None:
        """Close the clients of the running event loop that were opened here; a second call does nothing.

        Operations under way are waited for, for ``CC_MONGO_TIMEOUT_MS`` at most; later ones raise `ClosedError`.
        """
        await uncancelled(self._close)

    async def aclose(self) -> None:
        """Close, as `close` does; the name that `contextlib.aclosing` calls."""
        await self.close()

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


def _found(services: Mapping[type[Any], Any], kind: type[Any]) -> Any:
    service = services.get(kind)
    if service is None:
        raise SettingsError(
            f"This container has no {kind.__name__}; name its domain: Container(settings, domains=[MY_DOMAIN])."
        )
    return service
