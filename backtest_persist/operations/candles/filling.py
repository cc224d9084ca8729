"""`fill_candles`: a series completed from an exchange, which is asked only for what is not stored yet."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from backtest_persist.connections import uncancelled
from backtest_persist.contracts import When
from backtest_persist.core.candles.ohlcv import Series, interval_step_ms
from backtest_persist.core.keys import checked_timestamp
from backtest_persist.core.persist_instance import Services
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import ErrorReason, ExchangeError, InvalidKeyError
from backtest_persist.operations.candles.exchange import Answer, ExchangeMarket
from backtest_persist.operations.candles.missing import MissingCandles
from backtest_persist.operations.candles.ranges import Range, Ranges, count_candles
from backtest_persist.operations.candles.voids import LATE_MS, NothingSeenError, VoidReader
from backtest_persist.operations.progress import NoProgress, Progress

__all__ = ("RETRY_SECONDS", "CandlesFilled", "FillProgress", "fill_candles")

RETRY_SECONDS = 300.0
"""How long an exchange that does not answer is asked again."""
_DAY = 86_400_000


@dataclass
class CandlesFilled:
    """The report of a fill; times are opening times in ms UTC, and ranges end before their second time."""

    symbol: str
    interval: str
    exchange_name: str
    since: int
    until: int
    """The end of what was looked at: the last candle that had closed, if `until` was later."""
    gaps: list[Range] = field(default_factory=list[Range])
    """The gaps for which the exchange was asked, or would be in a dry run."""
    asked: int = 0
    """The candles in these gaps."""
    planned: int = 0
    """The requests that they take at least, if the exchange has all of them."""
    new: int = 0
    """How many candles are newly stored."""
    same: int = 0
    """How many came along that were stored already, with the same numbers."""
    different: list[int] = field(default_factory=list[int])
    """The times of those that are stored with other numbers, which were kept."""
    invalid: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The times of those that cannot be real and were not stored, each with what is wrong with it."""
    outliers: list[int] = field(default_factory=list[int])
    """The times of those with a price in another unit than those around it, stored only with `allow_outliers`."""
    missing: list[Range] = field(default_factory=list[Range])
    """The gaps in which the exchange has no candles, which it said now or in an earlier fill."""
    late: list[Range] = field(default_factory=list[Range])
    """The gaps of the last hours in which it has none yet; the next fill asks again."""
    remaining: list[Range] = field(default_factory=list[Range])
    """The other gaps that are left: for `invalid` and `outliers`, or all if the exchange has not given any candle."""
    requests: int = 0
    """How often the exchange was asked for candles, retries included."""
    retries: int = 0
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """The length of its interval in ms."""
        return interval_step_ms(self.interval)

    @property
    def is_complete(self) -> bool:
        """Whether all gaps that are left are those in which the exchange has no candles."""
        return not self.remaining


class FillProgress(Progress, Protocol):
    """Receives the progress of a fill, counted in candles."""

    def wait(self, seconds: float, why: str) -> None:
        """Announce a pause, after which a request is made again."""
        ...


class _NoProgress(NoProgress):
    def wait(self, seconds: float, why: str) -> None:
        """Ignore the pause."""


async def fill_candles(
    ioc: Services,
    exchange: Any,
    symbol: str,
    interval: str,
    since: When,
    until: When | None = None,
    *,
    exchange_name: str | None = None,
    ccxt_symbols: bool = False,
    session_length: timedelta | int | None = None,
    allow_outliers: bool = False,
    no_volume: bool = False,
    ask_again: bool = False,
    dry_run: bool = False,
    retry_seconds: float = RETRY_SECONDS,
    progress: FillProgress | None = None,
) -> CandlesFilled:
    """Store the candles of [since, until) that are missing, read from an open exchange of ``ccxt.async_support``.

    `symbol` is that of the exchange or of ccxt. The series is stored under the symbol of the exchange (``BTCUSDT``), or
    with `ccxt_symbols` that of ccxt (``BTC/USDT``), and under `exchange_name`, by default the id of the exchange.
    `until` is by default now; candles that are open are never stored, and nothing before 1970 is asked for.

    Where the exchange gives no volume, 0 is stored with `no_volume`; without it such a candle is in `invalid`.

    Candles of days that do not open at 00:00 UTC are refused without `session_length`, the time from the opening of a
    session to its close (a timedelta, or ms); with it, they are stored under the UTC days in which the sessions close.

    What the exchange does not have is remembered, and not asked for again without `ask_again`; see `MissingCandles`.
    That is told from candles that it gives; if it gives none at all, all gaps are `remaining`. Only candles younger
    than six hours are asked for again, as they may still come. A request that fails is repeated with growing pauses, or
    after the time for which the exchange asks, until it has failed for `retry_seconds`.

    What was fetched is stored page by page, so that a fill that was cancelled, killed, or ended by an error goes on
    from there when it is run again. A cancelled one stores the page at hand first. With `dry_run` nothing is asked for
    but the markets, and nothing written.

    `InvalidKeyError` for a symbol or an interval that the exchange or this package does not have, `ExchangeError` for
    an exchange that refuses, or does not answer for so long, `SettingsError` for one that is not asynchronous.
    """
    started = time.perf_counter()
    candles = ioc.db_service(CandleDbService)
    progress = progress or _NoProgress()
    bounds = [
        None if at is None else checked_timestamp(at, what, candles.allows_early_times)
        for at, what in ((since, "since"), (until, "until"))
    ]
    if session_length is not None and interval != "1d":
        raise InvalidKeyError(f"session_length is for candles of 1d, not of {interval!r:.40}.")
    market = ExchangeMarket(exchange, session_length=session_length, retry_seconds=retry_seconds, on_wait=progress.wait)
    await market.open(symbol, interval)
    series = _name_series(market, interval, exchange_name, ccxt_symbols=ccxt_symbols)
    start, end = _period(series, *bounds)
    missing = MissingCandles(ioc, series)
    await missing.load()
    if ask_again:
        missing.forget(start, end)
    _, gaps = Ranges(await candles.find_gaps(*_names(series), start, end)).split(missing.within(start, end))
    report = CandlesFilled(series.symbol, series.interval, series.exchange_name, start, end, gaps=list(gaps))
    report.asked = count_candles(gaps, series.step)
    report.planned = sum(1 for _ in _pages(gaps, market.page * series.step))
    if not dry_run:
        await _Filler(market, series, candles, missing, gaps, report, progress, allow_outliers, no_volume).run()
    report.requests, report.retries = market.requests, market.retries
    report.seconds = time.perf_counter() - started
    return report


def _name_series(market: ExchangeMarket, interval: str, exchange_name: str | None, *, ccxt_symbols: bool) -> Series:
    """Return the series under which the candles of a market are stored; `InvalidKeyError` if two would be mixed."""
    if market.rival is not None and exchange_name in (None, market.exchange_id) and not ccxt_symbols:
        raise InvalidKeyError(
            f"{market.id} is the symbol of {market.rival} as well as of {market.symbol} on {market.exchange_id}, and "
            f"their candles would be one series. Give another exchange_name (--exchange-name), such "
            f"as {market.exchange_id}-swap, or ccxt_symbols (--ccxt-symbols)."
        )
    name = market.symbol if ccxt_symbols else market.id
    return Series(name, interval, market.exchange_id if exchange_name is None else exchange_name)


def _names(series: Series) -> tuple[str, str, str]:
    return series.symbol, series.interval, series.exchange_name


def _period(series: Series, since: int | None, until: int | None) -> Range:
    """Return the opening times of the candles of a period that have closed by now, as a range."""
    now, step = int(time.time() * 1000), series.step
    since = max(since or 0, 0)
    if since >= (now if until is None else until):
        raise InvalidKeyError(f"since ({since}) must lie before {f'until ({until})' if until is not None else 'now'}.")
    start = -(-since // step) * step
    closed = now // step * step
    return start, max(start, closed if until is None else min(closed, -(-until // step) * step))


def _pages(gaps: Ranges, length: int) -> Iterator[Range]:
    """Iterate over the ranges of `length` ms at most that cover the gaps, which one request each takes at least."""
    at = 0
    for start, end in gaps:
        at = max(at, start)
        while at < end:
            yield at, at + length
            at += length


@dataclass
class _Filler:
    """One fill: page by page from the first gap on."""

    market: ExchangeMarket
    series: Series
    candles: CandleDbService
    missing: MissingCandles
    gaps: Ranges
    """Those for which the exchange has not been asked yet."""
    report: CandlesFilled
    progress: FillProgress
    allow_outliers: bool
    no_volume: bool
    late: Ranges = field(default_factory=Ranges)
    """Those that are too young to count as missing."""

    async def run(self) -> None:
        """Ask for all gaps, then look at what is left."""
        until, step = self.report.until, self.series.step
        self.progress.begin(self.report.asked)
        await self.missing.save(_now())
        reader = VoidReader(self.market, self.series.interval, step, await self._last_stored())
        while gap := next(iter(self.gaps), None):
            at = gap[0]
            end = self.gaps.within(at, at + self.market.page * step)[-1][1]
            try:
                answer = await reader.read(at, end)
            except NothingSeenError:
                break
            if answer.rows:
                reached = max(answer.rows) // step * step + step
            else:
                reached = await reader.find_end_of_void(at, end, answer)
            await uncancelled(partial(self._store, at, min(reached, until), answer))
        await self._look_at_rest()

    async def _last_stored(self) -> int | None:
        """Return the time of the last stored candle before the end of the first gap, which the exchange may have."""
        for _, end in self.gaps:
            found = await self.candles.find_last(*_names(self.series), 1, end)
            return found[0].timestamp if found else None
        return None

    async def _store(self, at: int, end: int, answer: Answer) -> None:
        """Store the rows of [at, end) and remember the gaps in between, in this order."""
        series, report, step = self.series, self.report, self.series.step
        rows = [row for opening, given in answer.rows.items() if at <= opening < end for row in given]
        openings: list[int] = [row[0] for row in rows]
        if self.no_volume:
            rows = [[*row[:5], 0.0] if row[5] is None else row for row in rows]
        self._check_openings(openings)
        stored = await self.candles.store(
            *_names(series),
            rows,
            as_of=answer.asked_at,
            errors="skip",
            allow_outliers=self.allow_outliers,
        )
        report.new += stored.new
        report.same += stored.same
        report.different += stored.different
        report.outliers += stored.outliers
        report.invalid += [(openings[position], _explain(problem)) for position, problem in stored.invalid]
        gaps = self.gaps.within(at, end)
        lacking = Ranges(gaps)
        for opening in openings:
            lacking.remove(opening // step * step, opening // step * step + step)
        for opening in stored.open:
            self.late.add(opening, opening + step)
        settled = max(at, (answer.asked_at - LATE_MS) // step * step)
        self.missing.add(lacking.within(at, settled))
        for start, stop in lacking.within(settled, end):
            self.late.add(start, stop)
        await self.missing.save(answer.asked_at)
        self.gaps.remove(at, end)
        self.progress.advance(count_candles(gaps, step))

    def _check_openings(self, openings: Iterable[int]) -> None:
        """Raise `ExchangeError` for candles of an exchange whose day does not begin at 00:00 UTC."""
        step = self.series.step
        offsets = {opening % step for opening in openings}
        if len(offsets) == 1 and (offset := offsets.pop()):
            hours, minutes = divmod(offset // 60_000, 60)
            advice = "Give session_length (--session-length)" if step == _DAY else "Fill a shorter interval"
            raise ExchangeError(
                f"{self.market.exchange_id} opens the {self.series.interval} candles of {self.market.symbol} "
                f"{hours:02}:{minutes:02} later than they open here: at 00:00 UTC, and each interval after "
                f"that. {advice}.",
                exchange=self.market.exchange_id,
                reason=ErrorReason.UNSUPPORTED,
            )

    async def _look_at_rest(self) -> None:
        report = self.report
        gaps = Ranges(await self.candles.find_gaps(*_names(self.series), report.since, report.until))
        missing, gaps = gaps.split(self.missing.within(report.since, report.until))
        late, gaps = gaps.split(self.late)
        report.missing, report.late, report.remaining = list(missing), list(late), list(gaps)


def _explain(problem: str) -> str:
    """Return what is wrong with a candle in words for whoever did not write the row."""
    text = problem.partition(" (a list with ")[0]
    if text.startswith("volume must be") and text.endswith("NoneType"):
        return "the exchange gives no volume; to store 0, give no_volume (--no-volume)"
    return text


def _now() -> int:
    return int(time.time() * 1000)
