"""Operations: `examine` finds out what is wrong, `verify` and `rebuild` keep Redis true to MongoDB."""

from backtest_persist.operations.cache import Count, Rebuilt, Verified, rebuild, verify
from backtest_persist.operations.doctor import Diagnosis, Finding, Level, examine

__all__ = ("Count", "Diagnosis", "Finding", "Level", "Rebuilt", "Verified", "examine", "rebuild", "verify")
