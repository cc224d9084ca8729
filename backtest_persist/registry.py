"""The registry a runner talks to: fifteen typed entries, and one place to say which backend stands behind them."""

import asyncio
import os
from collections.abc import Callable, Hashable
from typing import ClassVar, Generic, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from backtest_persist import contracts
from backtest_persist.backends.dummy import DummyBackend
from backtest_persist.backends.json.adapters import JsonBackend
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.container import Container
from backtest_persist.core.keys import checked_flag, checked_name
from backtest_persist.domains.candle import interval_step_ms
from backtest_persist.errors import SettingsError

__all__ = ("Entry", "Registry")

T = TypeVar("T", bound=contracts.PersistInstance)


class Entry(Generic[T]):
    """One domain of a registry: `use` says which class stands behind it, a call gives the instance of a context."""

    def __init__(self, factory: Callable[..., T]) -> None:
        self._factory = factory
        self._instances: dict[Hashable, T] = {}
        self._ready: set[Hashable] = set()
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[Hashable, asyncio.Lock]] = (
            WeakKeyDictionary()
        )

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

    async def _instance(self, **names: str | bool) -> T:
        """One instance per context, initialised once; after a failed initialisation the next call tries again."""
        context = tuple([_checked(name, value) for name, value in names.items()])
        if context in self._ready:
            return self._instances[context]
        locks = self._locks.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        lock = locks.setdefault(context, asyncio.Lock())  # it lives as long as somebody holds it or waits for it
        async with lock:
            instances, ready = self._instances, self._ready  # `use` may swap them while this waits
            if context not in ready:
                instance = instances.setdefault(context, self._factory(*context))
                await instance.wait_for_init(True)
                ready.add(context)
            return instances[context]


def _checked(name: str, value: str | bool) -> str | bool:
    """A component of a context that every backend can keep apart from the others."""
    if name == "backtest":
        return checked_flag(value, name)
    if name == "interval":
        interval_step_ms(cast("str", value))
    return checked_name(value, name)


class BreakevenEntry(Entry[contracts.PersistBreakevenInstance]):
    """The breakeven domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistBreakevenInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)


class CandleEntry(Entry[contracts.PersistCandleInstance]):
    """The candle domain."""

    async def __call__(
        self, symbol: str, interval: contracts.CandleInterval, exchange_name: str
    ) -> contracts.PersistCandleInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol=symbol, interval=interval, exchange_name=exchange_name)


class IntervalEntry(Entry[contracts.PersistIntervalInstance]):
    """The interval domain."""

    async def __call__(self, bucket: str) -> contracts.PersistIntervalInstance:
        """The initialised instance of this context."""
        return await self._instance(bucket=bucket)


class LogEntry(Entry[contracts.PersistLogInstance]):
    """The log domain."""

    async def __call__(self) -> contracts.PersistLogInstance:
        """The initialised instance of this context."""
        return await self._instance()


class MeasureEntry(Entry[contracts.PersistMeasureInstance]):
    """The measure domain."""

    async def __call__(self, bucket: str) -> contracts.PersistMeasureInstance:
        """The initialised instance of this context."""
        return await self._instance(bucket=bucket)


class MemoryEntry(Entry[contracts.PersistMemoryInstance]):
    """The memory domain."""

    async def __call__(self, signal_id: str, bucket_name: str) -> contracts.PersistMemoryInstance:
        """The initialised instance of this context."""
        return await self._instance(signal_id=signal_id, bucket_name=bucket_name)


class NotificationEntry(Entry[contracts.PersistNotificationInstance]):
    """The notification domain."""

    async def __call__(self, backtest: bool) -> contracts.PersistNotificationInstance:
        """The initialised instance of this context."""
        return await self._instance(backtest=backtest)


class PartialEntry(Entry[contracts.PersistPartialInstance]):
    """The partial domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistPartialInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)


class RecentEntry(Entry[contracts.PersistRecentInstance]):
    """The recent domain."""

    async def __call__(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool
    ) -> contracts.PersistRecentInstance:
        """The initialised instance of this context."""
        return await self._instance(
            symbol=symbol,
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=frame_name,
            backtest=backtest,
        )


class RiskEntry(Entry[contracts.PersistRiskInstance]):
    """The risk domain."""

    async def __call__(self, risk_name: str, exchange_name: str) -> contracts.PersistRiskInstance:
        """The initialised instance of this context."""
        return await self._instance(risk_name=risk_name, exchange_name=exchange_name)


class ScheduleEntry(Entry[contracts.PersistScheduleInstance]):
    """The schedule domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistScheduleInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)


class SessionEntry(Entry[contracts.PersistSessionInstance]):
    """The session domain."""

    async def __call__(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool
    ) -> contracts.PersistSessionInstance:
        """The initialised instance of this context."""
        return await self._instance(
            strategy_name=strategy_name,
            exchange_name=exchange_name,
            frame_name=frame_name,
            symbol=symbol,
            backtest=backtest,
        )


class SignalEntry(Entry[contracts.PersistSignalInstance]):
    """The signal domain."""

    async def __call__(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PersistSignalInstance:
        """The initialised instance of this context."""
        return await self._instance(symbol=symbol, strategy_name=strategy_name, exchange_name=exchange_name)


class StateEntry(Entry[contracts.PersistStateInstance]):
    """The state domain."""

    async def __call__(self, signal_id: str, bucket_name: str) -> contracts.PersistStateInstance:
        """The initialised instance of this context."""
        return await self._instance(signal_id=signal_id, bucket_name=bucket_name)


class StorageEntry(Entry[contracts.PersistStorageInstance]):
    """The storage domain."""

    async def __call__(self, backtest: bool) -> contracts.PersistStorageInstance:
        """The initialised instance of this context."""
        return await self._instance(backtest=backtest)


class Registry:
    """Fifteen entries with one backend behind them; several registries can live in one process.

    MongoDB, through `container` (the process-wide one when None), stands behind them until another backend is chosen.
    """

    _bound: ClassVar[Container | None] = None

    def __init__(self, container: Container | None = None) -> None:
        if container is None and Registry._bound is None:
            raise SettingsError("This registry knows no container; import backtest_persist, or pass one.")
        self._container = container or cast("Container", Registry._bound)
        backend = MongoBackend(self._container)
        self.breakeven = BreakevenEntry(backend.breakeven)
        self.candle = CandleEntry(backend.candle)
        self.interval = IntervalEntry(backend.interval)
        self.log = LogEntry(backend.log)
        self.measure = MeasureEntry(backend.measure)
        self.memory = MemoryEntry(backend.memory)
        self.notification = NotificationEntry(backend.notification)
        self.partial = PartialEntry(backend.partial)
        self.recent = RecentEntry(backend.recent)
        self.risk = RiskEntry(backend.risk)
        self.schedule = ScheduleEntry(backend.schedule)
        self.session = SessionEntry(backend.session)
        self.signal = SignalEntry(backend.signal)
        self.state = StateEntry(backend.state)
        self.storage = StorageEntry(backend.storage)

    @classmethod
    def bind(cls, container: Container) -> None:
        """Set the container of registries that are given none."""
        cls._bound = container

    def use(self, backend: contracts.Backend) -> None:
        """Let a backend stand behind all fifteen domains; memoised instances are forgotten."""
        self.breakeven.use(backend.breakeven)
        self.candle.use(backend.candle)
        self.interval.use(backend.interval)
        self.log.use(backend.log)
        self.measure.use(backend.measure)
        self.memory.use(backend.memory)
        self.notification.use(backend.notification)
        self.partial.use(backend.partial)
        self.recent.use(backend.recent)
        self.risk.use(backend.risk)
        self.schedule.use(backend.schedule)
        self.session.use(backend.session)
        self.signal.use(backend.signal)
        self.state.use(backend.state)
        self.storage.use(backend.storage)

    def use_mongo(self) -> None:
        """Let MongoDB, with Redis in front, stand behind all fifteen domains."""
        self.use(MongoBackend(self._container))

    def use_json(self, directory: str | os.PathLike[str] = "./dump") -> None:
        """Let JSON files below `directory` stand behind all fifteen domains; see `JsonBackend`."""
        self.use(JsonBackend(directory))

    def use_dummy(self) -> None:
        """Let nothing stand behind all fifteen domains: reads find nothing, writes vanish; see `DummyBackend`."""
        self.use(DummyBackend())
