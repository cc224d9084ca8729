"""Operations on whole databases: examine, verify, rebuild, migrate, initiate; they do the work and render nothing."""

from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.operations.cache.comparison import IdCounts
from backtest_persist.operations.cache.rebuilding import Rebuilt, rebuild
from backtest_persist.operations.cache.verification import Verified, verify
from backtest_persist.operations.candles.exporting import CandlesExported, SkippedCandle, export_candles
from backtest_persist.operations.candles.filling import CandlesFilled, fill_candles
from backtest_persist.operations.candles.gaps import CandleGaps, Gap, find_candle_gaps
from backtest_persist.operations.candles.importing import CandlesImported, import_candles
from backtest_persist.operations.doctor import examine
from backtest_persist.operations.doctor.diagnosis import Diagnosis, Finding, Level
from backtest_persist.operations.duplicates import Duplicates, StoredDocument, find_duplicates
from backtest_persist.operations.migration import Migrated, find_narrow_indexes, migrate
from backtest_persist.operations.progress import Progress
from backtest_persist.operations.replica_set import ReplicaSet, initiate

__all__ = (
    "CandleGaps",
    "CandlesExported",
    "CandlesFilled",
    "CandlesImported",
    "Diagnosis",
    "Duplicates",
    "Finding",
    "Gap",
    "IdCounts",
    "Level",
    "Migrated",
    "Progress",
    "Rebuilt",
    "ReplicaSet",
    "SeriesSummary",
    "SkippedCandle",
    "StoredDocument",
    "Verified",
    "examine",
    "export_candles",
    "fill_candles",
    "find_candle_gaps",
    "find_duplicates",
    "find_narrow_indexes",
    "import_candles",
    "initiate",
    "migrate",
    "rebuild",
    "verify",
)
