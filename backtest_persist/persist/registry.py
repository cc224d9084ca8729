"""The registry a runner talks to: fifteen typed entries, and one place to say which backend stands behind them."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from backtest_persist import contracts
from backtest_persist.container import Container
from backtest_persist.domains.breakeven import PersistBreakevenInstance
from backtest_persist.domains.candle import PersistCandleInstance
from backtest_persist.domains.interval import PersistIntervalInstance
from backtest_persist.domains.log import PersistLogInstance
from backtest_persist.domains.measure import PersistMeasureInstance
from backtest_persist.domains.memory import PersistMemoryInstance
from backtest_persist.domains.notification import PersistNotificationInstance
from backtest_persist.domains.partial import PersistPartialInstance
from backtest_persist.domains.recent import PersistRecentInstance
from backtest_persist.domains.risk import PersistRiskInstance
from backtest_persist.domains.schedule import PersistScheduleInstance
from backtest_persist.domains.session import PersistSessionInstance
from backtest_persist.domains.signal import PersistSignalInstance
from backtest_persist.domains.state import PersistStateInstance
from backtest_persist.domains.storage import PersistStorageInstance

__all__ = ("Entry", "Registry")

T = TypeVar("T", bound=contracts.PersistInstance)


class Entry(Generic[T]):
    """One domain of a registry: `use` says which class stands behind it, a call gives the instance of a context."""

    def __init__(self, factory: Callable[..., T]) -> None:
        self._factory = factory
        self._instances: dict[Hashable, T] = {}
        self._ready: set[Hashable] = set()
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, asyncio.Lock]] = WeakKeyDictionary()

    def use(self, factory: Callable[..., T]) -> None:
        """Let another class (or factory) stand behind this domain; memoised instances are forgotten.

        It is called with the context, in the order of the entry's own signature.
        """
        self._factory = factory
        self.clear()

    def clear(self) -> None:
        """Forget the memoised instances."""
        self._instances = {}
        self._ready = set()

    async def _instance(self, *context: Hashable) -> T:
        """One instance per context, initialised once; after a failed initialisation the next call tries again."""
        if context in self._ready:
            return self._instances[context]
        locks = self._locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(context, asyncio.Lock()):
            instances, ready = self._instances, self._ready  # `use` may swap them while this waits
            if context not in ready:
                instance = instances.setdefault(context, self._factory(*context))
                await instance.wait_for_init(True)
                ready.add(context)
            return instances[context]


class BreakevenEntry(Entry[contracts.PersistBreakevenInstance]):
    """The breakeven domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistBreakevenInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, strategy_name, exchange_name)


class CandleEntry(Entry[contracts.PersistCandleInstance]):
    """The candle domain."""

    async def __call__(
        self, symbol: str, interval: contracts.CandleInterval, exchange_name: str
    ) -> contracts.PersistCandleInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, interval, exchange_name)


class IntervalEntry(Entry[contracts.PersistIntervalInstance]):
    """The interval domain."""

    async def __call__(self, bucket: str) -> contracts.PersistIntervalInstance:
        """The initialised instance of this context."""
        return await self._instance(bucket)


class LogEntry(Entry[contracts.PersistLogInstance]):
    """The log domain."""

    async def __call__(self) -> contracts.PersistLogInstance:
        """The initialised instance of this context."""
        return await self._instance()


class MeasureEntry(Entry[contracts.PersistMeasureInstance]):
    """The measure domain."""

    async def __call__(self, bucket: str) -> contracts.PersistMeasureInstance:
        """The initialised instance of this context."""
        return await self._instance(bucket)


class MemoryEntry(Entry[contracts.PersistMemoryInstance]):
    """The memory domain."""

    async def __call__(self, signal_id: str, bucket_name: str) -> contracts.PersistMemoryInstance:
        """The initialised instance of this context."""
        return await self._instance(signal_id, bucket_name)


class NotificationEntry(Entry[contracts.PersistNotificationInstance]):
    """The notification domain."""

    async def __call__(self, backtest: bool) -> contracts.PersistNotificationInstance:
        """The initialised instance of this context."""
        return await self._instance(backtest)


class PartialEntry(Entry[contracts.PersistPartialInstance]):
    """The partial domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistPartialInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, strategy_name, exchange_name)


class RecentEntry(Entry[contracts.PersistRecentInstance]):
    """The recent domain."""

    async def __call__(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool
    ) -> contracts.PersistRecentInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, strategy_name, exchange_name, frame_name, backtest)


class RiskEntry(Entry[contracts.PersistRiskInstance]):
    """The risk domain."""

    async def __call__(self, risk_name: str, exchange_name: str) -> contracts.PersistRiskInstance:
        """The initialised instance of this context."""
        return await self._instance(risk_name, exchange_name)


class ScheduleEntry(Entry[contracts.PersistScheduleInstance]):
    """The schedule domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistScheduleInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, strategy_name, exchange_name)


class SessionEntry(Entry[contracts.PersistSessionInstance]):
    """The session domain."""

    async def __call__(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool
    ) -> contracts.PersistSessionInstance:
        """The initialised instance of this context."""
        return await self._instance(strategy_name, exchange_name, frame_name, symbol, backtest)


class SignalEntry(Entry[contracts.PersistSignalInstance]):
    """The signal domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistSignalInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol, strategy_name, exchange_name)


class StateEntry(Entry[contracts.PersistStateInstance]):
    """The state domain."""

    async def __call__(self, signal_id: str, bucket_name: str) -> contracts.PersistStateInstance:
        """The initialised instance of this context."""
        return await self._instance(signal_id, bucket_name)


class StorageEntry(Entry[contracts.PersistStorageInstance]):
    """The storage domain."""

    async def __call__(self, backtest: bool) -> contracts.PersistStorageInstance:
        """The initialised instance of this context."""
        return await self._instance(backtest)


class Registry:
    """Fifteen entries over one container; several registries can live in one process."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.breakeven = BreakevenEntry(self._on_mongo(PersistBreakevenInstance))
        self.candle = CandleEntry(self._on_mongo(PersistCandleInstance))
        self.interval = IntervalEntry(self._on_mongo(PersistIntervalInstance))
        self.log = LogEntry(self._on_mongo(PersistLogInstance))
        self.measure = MeasureEntry(self._on_mongo(PersistMeasureInstance))
        self.memory = MemoryEntry(self._on_mongo(PersistMemoryInstance))
        self.notification = NotificationEntry(self._on_mongo(PersistNotificationInstance))
        self.partial = PartialEntry(self._on_mongo(PersistPartialInstance))
        self.recent = RecentEntry(self._on_mongo(PersistRecentInstance))
        self.risk = RiskEntry(self._on_mongo(PersistRiskInstance))
        self.schedule = ScheduleEntry(self._on_mongo(PersistScheduleInstance))
        self.session = SessionEntry(self._on_mongo(PersistSessionInstance))
        self.signal = SignalEntry(self._on_mongo(PersistSignalInstance))
        self.state = StateEntry(self._on_mongo(PersistStateInstance))
        self.storage = StorageEntry(self._on_mongo(PersistStorageInstance))

    def use_mongo(self) -> None:
        """Let MongoDB, with Redis in front, stand behind all fifteen domains."""
        self.breakeven.use(self._on_mongo(PersistBreakevenInstance))
        self.candle.use(self._on_mongo(PersistCandleInstance))
        self.interval.use(self._on_mongo(PersistIntervalInstance))
        self.log.use(self._on_mongo(PersistLogInstance))
        self.measure.use(self._on_mongo(PersistMeasureInstance))
        self.memory.use(self._on_mongo(PersistMemoryInstance))
        self.notification.use(self._on_mongo(PersistNotificationInstance))
        self.partial.use(self._on_mongo(PersistPartialInstance))
        self.recent.use(self._on_mongo(PersistRecentInstance))
        self.risk.use(self._on_mongo(PersistRiskInstance))
        self.schedule.use(self._on_mongo(PersistScheduleInstance))
        self.session.use(self._on_mongo(PersistSessionInstance))
        self.signal.use(self._on_mongo(PersistSignalInstance))
        self.state.use(self._on_mongo(PersistStateInstance))
        self.storage.use(self._on_mongo(PersistStorageInstance))

    def _on_mongo(self, adapter: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *context: adapter(*context, ioc=self._container)
