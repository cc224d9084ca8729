"""The candles of one market, read from an open exchange of ``ccxt.async_support``, which is never imported here."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar, cast, get_args

from backtest_persist.contracts import CandleInterval
from backtest_persist.core.candles.ohlcv import interval_step_ms
from backtest_persist.core.candles.session_days import session_day
from backtest_persist.core.keys import checked_name
from backtest_persist.errors import BacktestPersistError, ErrorReason, ExchangeError, InvalidKeyError, SettingsError
from backtest_persist.operations.candles.exchange_faults import (
    Fault,
    UnreadableAnswerError,
    find_fault,
    read_retry_after,
    read_server_time,
)

__all__ = ("Answer", "ExchangeMarket")

T = TypeVar("T")

_PAGE = 500
"""The candles of one request where ccxt does not know how many the exchange gives."""
_MARGIN = 5
"""How many candles more are asked for than are needed, as some exchanges begin before the time that was asked."""
_DAY = 86_400_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_RATE_LIMIT_PAUSE = 5.0
"""The first pause, in seconds, after an exchange that was asked too often and does not say how long to wait."""


@dataclass
class Answer:
    """What an exchange has answered to one request."""

    rows: dict[int, list[Sequence[Any]]]
    """The rows of each time, in ms UTC, from the time on that was asked; it should be one."""
    asked_at: int
    """When it was asked, in ms UTC, by the earlier of both clocks: a candle that was open then may still change."""
    is_full: bool
    """Whether the exchange gave as many as it was asked for, so that nothing is left out before the last one."""
    limit: int
    """How many it was asked for."""
    reach: int
    """The time, in ms UTC, up to which so many candles go if none is missing."""


class ExchangeMarket:
    """One market of an exchange, which is asked again, with growing pauses, while a fault may pass."""

    def __init__(
        self,
        exchange: Any,
        *,
        session_length: timedelta | int | None,
        retry_seconds: float,
        on_wait: Callable[[float, str], None],
    ) -> None:
        self.requests = 0
        """How often it was asked for candles, retries included."""
        self.retries = 0
        """How many requests were repeated."""
        self.page = _PAGE
        """The candles of one request."""
        self._exchange = exchange
        self._session_length = session_length
        self._earlier = 0 if session_length is None else session_day(-1, session_length) + _DAY
        """By how many ms a session may open before the start of the day in which it closes."""
        self._retry_seconds = retry_seconds
        self._on_wait = on_wait
        self._market: Mapping[str, Any] = {}
        if getattr(exchange, "synchronous", False) or not hasattr(exchange, "fetch_ohlcv"):
            raise SettingsError(
                f"The exchange must be one of ccxt.async_support, not {type(exchange).__module__}."
                f"{type(exchange).__qualname__}; open it by: async with ccxt.async_support.binance() as exchange"
            )

    @property
    def exchange_id(self) -> str:
        """The name of the exchange in ccxt."""
        return str(self._exchange.id)

    @property
    def id(self) -> str:
        """The symbol in the spelling of the exchange, such as ``BTCUSDT``."""
        return str(self._market["id"])

    @property
    def symbol(self) -> str:
        """The symbol in the spelling of ccxt, such as ``BTC/USDT``."""
        return str(self._market["symbol"])

    @property
    def rival(self) -> str | None:
        """The symbol of the market that this `id` means first, such as that of the spot, if it is another one."""
        first = str(self._exchange.market(self.id)["symbol"])
        return None if first == self.symbol else first

    async def open(self, symbol: str, interval: str) -> None:
        """Load the markets and find one by either spelling.

        `InvalidKeyError` for a symbol or an interval that the exchange does not have, `ExchangeError` for an exchange
        without candles.
        """
        interval_step_ms(interval)
        checked_name(symbol, "symbol")
        exchange = self._exchange
        await self._send(exchange.load_markets)
        has = exchange.has.get("fetchOHLCV")
        if has is not True:
            how = "only builds them from its last trades" if has == "emulated" else "does not give them"
            raise ExchangeError(
                f"{self.exchange_id} has no candles: ccxt {how}.",
                exchange=self.exchange_id,
                reason=ErrorReason.UNSUPPORTED,
            )
        if not self.has_interval(interval):
            both = [name for name in get_args(CandleInterval) if self.has_interval(name)]
            raise InvalidKeyError(
                f"{self.exchange_id} has no candles of {interval}; both sides know {' '.join(both) or 'no interval'}."
            )
        self._market = self._find_market(symbol)
        try:
            page = exchange.feature_value(self.symbol, "fetchOHLCV", "limit")
        except Exception:  # of a release of ccxt that has no features
            page = None
        self.page = page if isinstance(page, int) and page > 0 else _PAGE

    def has_interval(self, interval: str) -> bool:
        """Whether the exchange has candles of that length."""
        return interval in (self._exchange.timeframes or ())

    async def read(self, since: int, until: int, interval: str, step: int, *, must_give: bool = False) -> Answer:
        """Read candles from `since` on, at least up to `until` if they fit one request; what comes may go beyond it.

        Those of sessions are read under the days in which these close. With `must_give`, for what was given before, an
        answer without candles is a fault that may pass.
        """
        begin = max(0, since - self._earlier)
        limit = min(self.page, -(-(until - begin) // step) + _MARGIN)
        self.requests += 1
        rows, asked_at = await self._send(
            partial(self._fetch, interval, begin, limit, must_give=must_give), counted=True
        )
        self._check_times(rows, begin, asked_at, step)
        is_full = len(rows) >= limit
        if self._session_length is not None:
            rows = self._by_session_days(rows, self._session_length)
        found: dict[int, list[Sequence[Any]]] = {}
        for row in rows:
            if row[0] >= since:
                found.setdefault(row[0], []).append(row)
        return Answer(found, asked_at, is_full, limit, begin + limit * step)

    def _check_times(self, rows: Sequence[Sequence[Any]], begin: int, asked_at: int, step: int) -> None:
        """Raise `ExchangeError` for rows none of which was asked for, or that lie in the future."""
        times: list[int] = [row[0] for row in rows]
        if not times:
            return
        latest = asked_at + step + _DAY
        what = None
        if max(times) < begin - _MARGIN * step:
            what = f"before the time that it was asked for ({begin})"
        elif max(times) > latest:
            what = f"after the present ({asked_at})"
        if what is not None:
            raise ExchangeError(
                f"{self.exchange_id} answers with candles of {self.symbol} {what}: the last one opens at {max(times)}. "
                "Nothing of this answer is stored, and this series cannot be read through this release of ccxt.",
                exchange=self.exchange_id,
                reason=ErrorReason.SERVER_ERROR,
            )

    async def pause(self, seconds: float, why: str) -> None:
        """Announce a pause, and wait."""
        self._on_wait(seconds, why)
        await asyncio.sleep(seconds)

    async def _fetch(
        self, interval: str, since: int, limit: int, *, must_give: bool
    ) -> tuple[list[Sequence[Any]], int]:
        exchange, before = self._exchange, self._headers
        asked_at = int(time.time() * 1000)
        rows = await exchange.fetch_ohlcv(self.symbol, interval, since, limit)
        body = getattr(exchange, "last_http_response", None)
        if not rows and isinstance(body, str) and not body.lstrip().startswith(("[", "{")):
            # which ccxt takes for an exchange without candles
            raise UnreadableAnswerError(f"it answers with {' '.join(body.split())!r:.60}")
        if not isinstance(rows, list) or not all(map(_is_row, cast("list[Any]", rows))):
            raise UnreadableAnswerError("it answers with something else than rows of candles")
        if must_give and not rows:
            raise UnreadableAnswerError("it gives no candles where it gave some before")
        headers = self._headers
        answered_at = None if headers is before else read_server_time(headers or {})
        given = cast("list[Sequence[Any]]", rows)
        return given, asked_at if answered_at is None else min(asked_at, answered_at)

    def _by_session_days(self, rows: list[Sequence[Any]], length: timedelta | int) -> list[Sequence[Any]]:
        days = [session_day(row[0], length) for row in rows]
        if len({*days}) < len({row[0] for row in rows}):
            raise InvalidKeyError(
                f"session_length is {length}, but then two sessions of {self.symbol} on {self.exchange_id} close on "
                "one UTC day. Give the time from the opening of its sessions to their close."
            )
        return [[day, *row[1:]] for day, row in zip(days, rows, strict=True)]

    @property
    def _headers(self) -> Mapping[str, Any] | None:
        return getattr(self._exchange, "last_response_headers", None)

    async def _send(self, request: Callable[[], Awaitable[T]], *, counted: bool = False) -> T:
        """Make a request again while its fault may pass, for `retry_seconds` after it has failed first.

        `counted` is one for candles. If its answer was not understood, it is made once more; another one is not.
        """
        pause, deadline, failures = _FIRST_PAUSE, None, 0
        while True:
            before = self._headers
            try:
                return await request()
            except Exception as error:
                fault = None if isinstance(error, BacktestPersistError) else find_fault(error)
                if fault is None:
                    raise
                headers = self._headers
                asked = None if headers is before else read_retry_after(headers or {}, time.time())
                failures += 1
                now = time.monotonic()
                deadline = deadline or now + self._retry_seconds
                if fault.reason is ErrorReason.RATE_LIMIT and asked is None:
                    pause = max(pause, _RATE_LIMIT_PAUSE)
                seconds = max(pause, asked or 0.0)
                if not fault.is_understood and (failures > 1 or not counted):
                    fault = replace(fault, may_pass=False)
                if not fault.may_pass or now + seconds > deadline:
                    raise self._error(fault, failures, asked) from error
            await self.pause(seconds, f"{fault.reason}: {fault.words}")
            pause = min(2 * pause, _LONGEST_PAUSE)
            self.retries += counted
            self.requests += counted

    def _error(self, fault: Fault, failures: int, asked: float | None) -> ExchangeError:
        name = self.exchange_id
        texts = {
            ErrorReason.RESTRICTED_LOCATION: f"{name} does not serve the location of this computer. Use another "
            "exchange, or a proxy where that is permitted (HTTPS_PROXY for the command, https_proxy of the exchange)",
            ErrorReason.UNAUTHENTICATED: f"{name} refuses to answer without valid credentials. Give the exchange its "
            "apiKey and secret, in Python; for candles, most exchanges need none",
            ErrorReason.UNSUPPORTED: f"{name} does not give candles of this market",
        }
        text = texts.get(fault.reason, f"{name} refuses the request")
        if not fault.is_understood:
            text = f"The answer of {name} was not understood. Look whether a newer ccxt reads it"
        if fault.may_pass:
            text = f"{name} did not answer in {self._retry_seconds:g} s, for which it was asked {failures} times"
            if asked is not None:
                text = f"{name} asks to wait for {asked:,.0f} s; the limit (retry_seconds) is {self._retry_seconds:g} s"
            text += ". What it gave before is stored; run the fill again later, and it goes on from there"
        return ExchangeError(
            f"{text}. ({fault.words})",
            exchange=name,
            reason=fault.reason,
            retryable=fault.may_pass,
            retry_after=asked if fault.may_pass else None,
        )

    def _find_market(self, symbol: str) -> Mapping[str, Any]:
        exchange = self._exchange
        if symbol in exchange.markets or symbol in exchange.markets_by_id:
            return exchange.market(symbol)
        names = [*exchange.markets, *exchange.markets_by_id]
        near = get_close_matches(symbol.upper(), map(str, names), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f", which has {len(exchange.markets):,} markets."
        raise InvalidKeyError(f"There is no symbol {symbol!r:.40} on {self.exchange_id}{hint}")


def _is_row(row: Any) -> bool:
    if not isinstance(row, list | tuple):
        return False
    values = cast("Sequence[Any]", row)
    return len(values) >= 6 and type(values[0]) is int
