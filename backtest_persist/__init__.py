"""Asyncio-native persistence for trading-strategy runners: MongoDB as the source of truth, Redis in front."""

from backtest_persist import contracts
from backtest_persist.backends.dummy import DummyBackend
from backtest_persist.backends.json.backend import JsonBackend
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.container import Container
from backtest_persist.contracts import CandleData, CandleInterval, When
from backtest_persist.core.base_map import DEFAULT_TTL_EXPIRE_SECONDS, ITERATOR_BATCH_SIZE, BaseMap, base_map
from backtest_persist.core.candles.report import CandleReport
from backtest_persist.core.candles.session_days import session_day
from backtest_persist.core.db_service import Page
from backtest_persist.core.frames.frame import CandleFrame, RowFrame
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.lease import Lease
from backtest_persist.core.row import utc_now
from backtest_persist.defaults import ioc, persist, setup
from backtest_persist.domains.breakeven import (
    BreakevenCacheService,
    BreakevenDbService,
    BreakevenRow,
    PersistBreakevenInstance,
)
from backtest_persist.domains.candle import (
    CandleCacheService,
    CandleDbService,
    CandleRow,
    PersistCandleInstance,
)
from backtest_persist.domains.dictionary import (
    DictionaryCacheService,
    DictionaryDbService,
    DictionaryRow,
    PersistDictionaryInstance,
)
from backtest_persist.domains.interval import (
    IntervalCacheService,
    IntervalDbService,
    IntervalRow,
    PersistIntervalInstance,
)
from backtest_persist.domains.log import LogCacheService, LogDbService, LogRow, PersistLogInstance
from backtest_persist.domains.measure import MeasureCacheService, MeasureDbService, MeasureRow, PersistMeasureInstance
from backtest_persist.domains.memory import MemoryCacheService, MemoryDbService, MemoryRow, PersistMemoryInstance
from backtest_persist.domains.notification import (
    NotificationCacheService,
    NotificationDbService,
    NotificationRow,
    PersistNotificationInstance,
)
from backtest_persist.domains.partial import PartialCacheService, PartialDbService, PartialRow, PersistPartialInstance
from backtest_persist.domains.recent import PersistRecentInstance, RecentCacheService, RecentDbService, RecentRow
from backtest_persist.domains.risk import PersistRiskInstance, RiskCacheService, RiskDbService, RiskRow
from backtest_persist.domains.schedule import (
    PersistScheduleInstance,
    ScheduleCacheService,
    ScheduleDbService,
    ScheduleRow,
)
from backtest_persist.domains.session import PersistSessionInstance, SessionCacheService, SessionDbService, SessionRow
from backtest_persist.domains.signal import PersistSignalInstance, SignalCacheService, SignalDbService, SignalRow
from backtest_persist.domains.state import PersistStateInstance, StateCacheService, StateDbService, StateRow
from backtest_persist.domains.storage import PersistStorageInstance, StorageCacheService, StorageDbService, StorageRow
from backtest_persist.domains.strategy import (
    PersistStrategyInstance,
    StrategyCacheService,
    StrategyDbService,
    StrategyRow,
)
from backtest_persist.embedded_servers import embedded
from backtest_persist.errors import (
    BacktestPersistError,
    ClosedError,
    ErrorReason,
    ExchangeError,
    IndexConflictError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidWhenError,
    LeaseHeldError,
    LeaseLostError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.mode import Mode
from backtest_persist.operations.transfer.exporting import export_dump
from backtest_persist.operations.transfer.importing import import_dump
from backtest_persist.registry import Registry
from backtest_persist.run.bar import Bar
from backtest_persist.run.checkpoint import Checkpoint
from backtest_persist.run.run import Run
from backtest_persist.settings import Settings

__version__ = "0.1.0"

__all__ = (
    "DEFAULT_TTL_EXPIRE_SECONDS",
    "ITERATOR_BATCH_SIZE",
    "BacktestPersistError",
    "Bar",
    "BaseMap",
    "BreakevenCacheService",
    "BreakevenDbService",
    "BreakevenRow",
    "CandleCacheService",
    "CandleData",
    "CandleDbService",
    "CandleFrame",
    "CandleInterval",
    "CandleReport",
    "CandleRow",
    "Checkpoint",
    "ClosedError",
    "Container",
    "DictionaryCacheService",
    "DictionaryDbService",
    "DictionaryRow",
    "DummyBackend",
    "ErrorReason",
    "ExchangeError",
    "IndexConflictError",
    "IntervalCacheService",
    "IntervalDbService",
    "IntervalRow",
    "InvalidKeyError",
    "InvalidPayloadError",
    "InvalidWhenError",
    "JsonBackend",
    "Lease",
    "LeaseHeldError",
    "LeaseLostError",
    "LogCacheService",
    "LogDbService",
    "LogRow",
    "MeasureCacheService",
    "MeasureDbService",
    "MeasureRow",
    "MemoryCacheService",
    "MemoryDbService",
    "MemoryRow",
    "Mode",
    "MongoBackend",
    "NotificationCacheService",
    "NotificationDbService",
    "NotificationRow",
    "Page",
    "PartialCacheService",
    "PartialDbService",
    "PartialRow",
    "PersistBreakevenInstance",
    "PersistCandleInstance",
    "PersistDictionaryInstance",
    "PersistIntervalInstance",
    "PersistLogInstance",
    "PersistMeasureInstance",
    "PersistMemoryInstance",
    "PersistNotificationInstance",
    "PersistPartialInstance",
    "PersistRecentInstance",
    "PersistRiskInstance",
    "PersistScheduleInstance",
    "PersistSessionInstance",
    "PersistSignalInstance",
    "PersistStateInstance",
    "PersistStorageInstance",
    "PersistStrategyInstance",
    "RecentCacheService",
    "RecentDbService",
    "RecentRow",
    "Registry",
    "RiskCacheService",
    "RiskDbService",
    "RiskRow",
    "RowFrame",
    "RowList",
    "Run",
    "ScheduleCacheService",
    "ScheduleDbService",
    "ScheduleRow",
    "SessionCacheService",
    "SessionDbService",
    "SessionRow",
    "Settings",
    "SettingsError",
    "SignalCacheService",
    "SignalDbService",
    "SignalRow",
    "StateCacheService",
    "StateDbService",
    "StateRow",
    "StorageCacheService",
    "StorageDbService",
    "StorageRow",
    "StoreUnavailableError",
    "StrategyCacheService",
    "StrategyDbService",
    "StrategyRow",
    "When",
    "WriteOutcomeUnknownError",
    "WriteRejectedError",
    "__version__",
    "base_map",
    "contracts",
    "embedded",
    "export_dump",
    "import_dump",
    "ioc",
    "persist",
    "session_day",
    "setup",
    "utc_now",
)
