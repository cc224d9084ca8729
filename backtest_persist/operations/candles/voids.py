"""Times without candles on an exchange, which count as such only as far as its candles show."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backtest_persist.errors import ExchangeError
from backtest_persist.operations.candles.exchange import Answer, ExchangeMarket
from backtest_persist.operations.candles.ranges import Range

__all__ = ("LATE_MS", "NothingSeenError", "VoidReader")

LATE_MS = 6 * 3_600_000
"""The age up to which a candle that an exchange does not have may still come."""
_DAY = 86_400_000
_PAUSE = 0.5
"""The seconds after which an exchange without candles for a time is asked for it again."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


class NothingSeenError(Exception):
    """The exchange has not given any candle, so that nothing is known of those that it does not give."""


def _next_day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _next_month(moment: datetime) -> datetime:
    return _next_day((moment.replace(day=1) + timedelta(days=31)).replace(day=1) - timedelta(days=1))


def _next_year(moment: datetime) -> datetime:
    return datetime(moment.year + 1, 1, 1, tzinfo=UTC)


_PERIODS: tuple[Callable[[datetime], datetime], ...] = (_next_day, _next_month, _next_year)


@dataclass
class _Shown:
    """What the answers for one interval have shown."""

    step: int
    request: Range | None = None
    """The bounds of the last request that was answered with candles."""
    length: int = 0
    """The longest time, in ms from the start of a request, to whose end an answer had candles."""
    periods: list[Callable[[datetime], datetime]] = field(default_factory=lambda: list(_PERIODS))
    """The UTC periods beyond whose end no answer has gone: it may hold one of them, such as a day, and no more."""
    was_sought: bool = False
    """Whether the newest candles were asked for, to see how long an answer is."""

    def learn(self, at: int, until: int, answer: Answer) -> None:
        self.request = at, until
        last = max(answer.rows)
        self.length = max(self.length, min(last + self.step, answer.reach) - at)
        self.periods = [period for period in self.periods if last < self._end(period, at)]

    def covered(self, at: int, answer: Answer) -> int:
        """Return the end of the time that an answer to a request from `at` on covers, at least one candle later."""
        ends = [at + self.length, answer.reach, *(self._end(period, at) for period in self.periods)]
        return max(at + self.step, min(ends) // self.step * self.step)

    @staticmethod
    def _end(period: Callable[[datetime], datetime], at: int) -> int:
        return (period(_EPOCH + at * _MILLISECOND) - _EPOCH) // _MILLISECOND


class VoidReader:
    """Reads the candles of a market, and finds out until when it has none.

    An empty answer counts only if the exchange has given candles before, gives some of them again right afterwards, and
    answers emptily once more. It covers no more time than an answer was long that had candles, not more than its limit,
    and not more than the UTC day, month or year, unless an answer has gone beyond the end of one.
    """

    def __init__(self, market: ExchangeMarket, interval: str, step: int, last_stored: int | None) -> None:
        self._market = market
        self._interval, self._step = interval, step
        self._shown: dict[str, _Shown] = {}
        self._seen = last_stored
        """The time of a candle that the exchange should have."""
        self._jumps = False
        """Whether it was seen to jump to the next candle that it has, whatever the limit."""
        self._void_end: int | None = None
        self._days_from = 0 if step < _DAY and market.has_interval("1d") else None
        """From when on candles of days may show the end of a void; None: they do not."""

    async def read(self, at: int, end: int) -> Answer:
        """Read from `at` on; the answer is complete from there to its last candle, or from `at` on for a void.

        `NothingSeenError` if the exchange has not given any candle yet.
        """
        return await self._read(at, end, self._interval, self._step)

    async def find_end_of_void(self, at: int, end: int, answer: Answer) -> int:
        """Return until when the exchange has nothing from `at` on, where it gave an empty answer."""
        settled = (answer.asked_at - LATE_MS) // self._step * self._step
        if at >= settled:
            return end
        reached = self._of(self._interval, self._step).covered(at, answer)
        if at == self._void_end and self._days_from is not None and at >= self._days_from:
            reached = max(reached, min(await self._look_at_days(at), settled))
        self._void_end = reached
        return reached

    async def _look_at_days(self, at: int) -> int:
        """Return until when candles of days show that there is nothing from `at` on, or `at`."""
        start = at // _DAY * _DAY - _DAY  # on some exchanges, the day of `at` begins in the day before
        stop = start + self._market.page * _DAY
        try:
            days = await self._read(start, stop, "1d", _DAY)
        except (ExchangeError, NothingSeenError) as error:
            if isinstance(error, ExchangeError) and error.retryable:
                raise
            self._days_from = None
            return at
        if around := [day for day in days.rows if at - _DAY < day <= at]:
            self._days_from = max(around) + _DAY
            return at
        later = [day for day in days.rows if day > at]
        reached = min(later, default=self._of("1d", _DAY).covered(start, days))
        return max(at, reached // self._step * self._step)

    async def _read(self, at: int, end: int, interval: str, step: int) -> Answer:
        """Read from `at` on; what an answer leaves out at its beginning is asked for again before it counts as missing.

        That is not necessary where the exchange jumps to the next candle that it has, which a whole page shows, or an
        answer that begins with the same candle whatever the limit. Otherwise it may give the newest candles whatever it
        was asked for, fewer than that, or the last ones of the time.
        """
        answer = await self._ask(at, end, interval, step)
        if not answer.rows:
            return answer
        first = min(answer.rows)
        may_jump = max(answer.rows) < answer.asked_at - 2 * step
        doubt, jumped_to = at, None
        if first < end and not answer.is_full:
            doubt = first
        elif first >= end and not may_jump:
            doubt = answer.asked_at
        elif first > at and not self._jumps:
            if answer.limit < self._market.page:
                doubt, jumped_to = answer.asked_at, first
            elif first >= end:
                self._jumps = True
        while at < doubt and at < answer.asked_at - LATE_MS:
            again = await self._market.read(at - step, doubt, interval, step)
            found = {opening: rows for opening, rows in again.rows.items() if opening >= at}
            answer.rows |= found
            first = min(found, default=doubt)
            self._jumps |= first == jumped_to
            if first >= doubt:
                break
            doubt = at if again.is_full else first
        return answer

    async def _ask(self, at: int, end: int, interval: str, step: int) -> Answer:
        """Read from `at` on; without candles twice if there are none."""
        answer = await self._market.read(at, end, interval, step)
        if answer.rows:
            self._learn(at, end, interval, step, answer)
        elif at < answer.asked_at - LATE_MS:
            if at != self._void_end:
                await asyncio.sleep(_PAUSE)
            await self._see_candles(interval, step, answer.asked_at)
            answer = await self._market.read(at, end, interval, step)
            if answer.rows:
                self._learn(at, end, interval, step, answer)
        return answer

    async def _see_candles(self, interval: str, step: int, now: int) -> None:
        """Return when the exchange gives candles of an interval, those that it gave before if there were some."""
        shown = self._of(interval, step)
        if shown.request is not None:
            await self._market.read(*shown.request, interval, step, must_give=True)
            if not shown.was_sought and 2 * shown.length < self._market.page * step:
                await self._seek(interval, step, now)
            return
        for pause in (0.0, 1.0, 3.0):
            if pause:
                await self._market.pause(pause, "it has not given any candle yet")
            if await self._seek(interval, step, now):
                return
        raise NothingSeenError

    async def _seek(self, interval: str, step: int, now: int) -> bool:
        """Look for candles, the newest ones first, with few requests; returns whether there were some."""
        self._of(interval, step).was_sought = True
        page = self._market.page
        ends = [now] if self._seen is None else [now, self._seen + step]
        for count in (page, page // 8, 2):
            for end in ends:
                start = max(0, end // step * step - count * step)
                answer = await self._market.read(start, start + page * step, interval, step)
                if answer.rows:
                    self._learn(start, start + page * step, interval, step, answer)
                    return True
        return False

    def _learn(self, at: int, end: int, interval: str, step: int, answer: Answer) -> None:
        self._of(interval, step).learn(at, end, answer)
        self._seen = max(answer.rows)

    def _of(self, interval: str, step: int) -> _Shown:
        return self._shown.setdefault(interval, _Shown(step))
