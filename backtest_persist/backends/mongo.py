"""The backend of MongoDB with Redis in front: the adapters of the domains, over one container."""

from backtest_persist.container import Container
from backtest_persist.contracts import CandleInterval
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

__all__ = ("MongoBackend",)


class MongoBackend:
    """Builds the adapters that keep everything in the MongoDB of a container; see `contracts.Backend`."""

    def __init__(self, container: Container) -> None:
        self._ioc = container

    def breakeven(self, symbol: str, strategy_name: str, exchange_name: str) -> PersistBreakevenInstance:
        """The adapter of a breakeven context."""
        return PersistBreakevenInstance(symbol, strategy_name, exchange_name, ioc=self._ioc)

    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> PersistCandleInstance:
        """The adapter of a candle context."""
        return PersistCandleInstance(symbol, interval, exchange_name, ioc=self._ioc)

    def interval(self, bucket: str) -> PersistIntervalInstance:
        """The adapter of an interval context."""
        return PersistIntervalInstance(bucket, ioc=self._ioc)

    def log(self) -> PersistLogInstance:
        """The adapter of the log."""
        return PersistLogInstance(ioc=self._ioc)

    def measure(self, bucket: str) -> PersistMeasureInstance:
        """The adapter of a measure context."""
        return PersistMeasureInstance(bucket, ioc=self._ioc)

    def memory(self, signal_id: str, bucket_name: str) -> PersistMemoryInstance:
        """The adapter of a memory context."""
        return PersistMemoryInstance(signal_id, bucket_name, ioc=self._ioc)

    def notification(self, backtest: bool) -> PersistNotificationInstance:
        """The adapter of a notification context."""
        return PersistNotificationInstance(backtest, ioc=self._ioc)

    def partial(self, symbol: str, strategy_name: str, exchange_name: str) -> PersistPartialInstance:
        """The adapter of a partial context."""
        return PersistPartialInstance(symbol, strategy_name, exchange_name, ioc=self._ioc)

    def recent(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool
    ) -> PersistRecentInstance:
        """The adapter of a recent context."""
        return PersistRecentInstance(symbol, strategy_name, exchange_name, frame_name, backtest, ioc=self._ioc)

    def risk(self, risk_name: str, exchange_name: str) -> PersistRiskInstance:
        """The adapter of a risk context."""
        return PersistRiskInstance(risk_name, exchange_name, ioc=self._ioc)

    def schedule(self, symbol: str, strategy_name: str, exchange_name: str) -> PersistScheduleInstance:
        """The adapter of a schedule context."""
        return PersistScheduleInstance(symbol, strategy_name, exchange_name, ioc=self._ioc)

    def session(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool
    ) -> PersistSessionInstance:
        """The adapter of a session context."""
        return PersistSessionInstance(strategy_name, exchange_name, frame_name, symbol, backtest, ioc=self._ioc)

    def signal(self, symbol: str, strategy_name: str, exchange_name: str) -> PersistSignalInstance:
        """The adapter of a signal context."""
        return PersistSignalInstance(symbol, strategy_name, exchange_name, ioc=self._ioc)

    def state(self, signal_id: str, bucket_name: str) -> PersistStateInstance:
        """The adapter of a state context."""
        return PersistStateInstance(signal_id, bucket_name, ioc=self._ioc)

    def storage(self, backtest: bool) -> PersistStorageInstance:
        """The adapter of a storage context."""
        return PersistStorageInstance(backtest, ioc=self._ioc)
