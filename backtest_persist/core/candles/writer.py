"""CandleWriter: checked candles compared with what is stored, stored where nothing is, and reported."""

from collections.abc import Mapping, Sequence
from typing import Any

from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.input import CheckedCandles
from backtest_persist.core.candles.ohlcv import Series
from backtest_persist.core.candles.report import CandleReport, ReportLog, has_same_numbers
from backtest_persist.core.candles.store import CandleStore, in_parts
from backtest_persist.core.mongo_store import Restored

__all__ = ("CandleWriter",)


class CandleWriter:
    """Stores the candles of calls in one backend; the first write of a time wins."""

    def __init__(self, candles: CandleStore[Any, Any]) -> None:
        self._candles = candles
        self.log = ReportLog(candles.logger)
        """The log of what is not stored as it was given."""

    async def write(self, series: Series, checked: CheckedCandles) -> CandleReport:
        """Store the valid ones of checked candles; returns, and logs, what became of each."""
        report = CandleReport.of(checked)
        candles, missing = checked.valid, list[CandleData]()
        for times in in_parts(sorted(candles)):
            stored = await self._candles.find_numbers(series, times)
            missing += [candles[at] for at in times if at not in stored]
            report.compare(candles, stored)
        report.new = await self._candles.insert_candles(series, missing)
        if report.new < len(missing):  # others have stored some of them since
            for times in in_parts([candle["timestamp"] for candle in missing]):
                report.compare(candles, await self._candles.find_numbers(series, times))
            report.different.sort()
            report.same -= report.new
        self.log.tell(series, report)
        return report

    async def admit_stored_outliers(self, series: Series, checked: CheckedCandles) -> None:
        """Treat outliers that are stored with the same numbers as other candles: somebody has allowed them."""
        for times in in_parts([*checked.outliers]):
            stored = await self._candles.find_numbers(series, times)
            for timestamp in stored.keys() & checked.outliers.keys():
                if has_same_numbers(stored[timestamp], checked.outliers[timestamp]):
                    checked.valid[timestamp] = checked.outliers.pop(timestamp)

    async def restore(self, series: Series, candles: Sequence[CandleData], *, dry_run: bool) -> list[Restored]:
        """Store candles where none is stored, and say of each what became of it; with `dry_run` nothing is written."""
        stored: dict[int, Mapping[str, Any]] = {}
        for times in in_parts(sorted(candle["timestamp"] for candle in candles)):
            stored |= await self._candles.find_numbers(series, times, prepare=not dry_run)
        if not dry_run:
            missing = [candle for candle in candles if candle["timestamp"] not in stored]
            await self._candles.insert_candles(series, missing)
        return [
            Restored.NEW
            if (document := stored.get(candle["timestamp"])) is None
            else Restored.SAME
            if has_same_numbers(document, candle)
            else Restored.DIFFERENT
            for candle in candles
        ]
