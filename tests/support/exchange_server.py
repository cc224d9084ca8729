"""A server that speaks the part of Binance's API that a fill uses, and the real exchange of ccxt that asks it."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, NamedTuple, Self

import ccxt.async_support as ccxt
from aiohttp import web

from backtest_persist.operations.candles.ranges import Range, Ranges

__all__ = (
    "DAY",
    "HOUR",
    "LISTED",
    "MINUTE",
    "STEPS",
    "Asked",
    "ExchangeServer",
    "connect",
    "number_of",
    "open_exchange",
)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
STEPS = {"1m": MINUTE, "5m": 5 * MINUTE, "1h": HOUR, "1d": DAY}
LISTED = 1_672_531_200_000
"""2023-01-01 00:00 UTC, the first candle."""


class Asked(NamedTuple):
    """A request for candles."""

    interval: str
    start: int
    limit: int


def number_of(opening: int) -> list[float]:
    """Return open, high, low, close and volume of the closed candle of a time, for all intervals."""
    n = opening // MINUTE
    first, last = 100 + n * 7919 % 1000 / 8, 100 + (n + 1) * 7919 % 1000 / 8
    return [first, max(first, last) + 0.25, min(first, last) - 0.5, last, n % 97 + 0.125]


class ExchangeServer:
    """Serves the candles of BTCUSDT, which are what their times make them, and ``faults`` before them.

    A fault is the name of a status (``503``), or ``cut``, ``half`` (a body), ``slow``, ``html``, ``empty``.
    """

    def __init__(
        self,
        *,
        holes: Iterable[Range] = (),
        delisted: int | None = None,
        is_windowed: bool = False,
        window: int | None = None,
        is_daily: bool = False,
        unit: float = 1,
        gives_newest: bool = False,
        offset: int = 0,
        page: int = 1000,
    ) -> None:
        self.holes = Ranges(holes)
        self.delisted = delisted
        self.is_windowed = is_windowed
        """Whether an answer ends `limit` candles after its start, instead of jumping to those that there are."""
        self.window = window
        """After how many candles an answer ends, whatever the limit."""
        self.is_daily = is_daily
        """Whether an answer ends with the UTC day of its start, and one of days with the year."""
        self.unit = unit
        """How many ms the unit of its times has."""
        self.gives_newest = gives_newest
        """Whether an answer is the newest candles, whatever its start."""
        self.offset = offset
        """By how many ms its days begin later than 00:00 UTC."""
        self.page = page
        """How many candles it gives at most, the last ones of the window if it is windowed."""
        self.faults: deque[str] = deque()
        self.headers: Mapping[str, str] = {}
        """The headers of a fault."""
        self.asked: list[Asked] = []
        self.moments: list[float] = []
        self.clock_ms = 0
        """By how many ms its clock is ahead of that of this computer."""
        self.changed: dict[int, list[Any]] = {}
        """Numbers of candles that differ from `number_of`."""
        self.doubles: set[int] = set()
        """The times of candles that it gives twice, with different numbers."""
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/v3/exchangeInfo", self._markets)
        app.router.add_get("/api/v3/klines", self._klines)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._runner.cleanup()

    def exists(self, opening: int, step: int) -> bool:
        """Whether there is a candle of that time, of which a part is not in a hole."""
        end = opening + step
        lacking = sum(stop - start for start, stop in self.holes.within(opening, end))
        return end > LISTED and lacking < step and (self.delisted is None or opening < self.delisted)

    def candles(self, since: int, until: int, step: int = MINUTE) -> list[list[Any]]:
        """Return the closed candles that open in [since, until), as rows of ccxt."""
        return [
            [opening, *self.changed.get(opening, number_of(opening))]
            for opening in range(-(-since // step) * step, until, step)
            if self.exists(opening, step)
        ]

    async def _markets(self, request: web.Request) -> web.Response:
        symbols = [_symbol(base, "USDT") for base in ("BTC", "ETH")]
        return web.json_response({"timezone": "UTC", "serverTime": 0, "rateLimits": [], "symbols": symbols})

    async def _klines(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(
            request.query["interval"], int(request.query["startTime"]), min(int(request.query["limit"]), self.page)
        )
        self.asked.append(Asked(asked.interval, asked.start, int(request.query["limit"])))
        self.moments.append(time.monotonic())
        fault = self.faults.popleft() if self.faults else ""
        if fault == "empty":
            return web.json_response([])
        if fault:
            return await self._fail(request, fault)
        text = json.dumps(self._answer(asked, int(request.query["limit"])))
        date = formatdate(self._now() / 1000, usegmt=True)
        return web.Response(text=text, content_type="application/json", headers={"Date": date})

    def _now(self) -> int:
        return int(time.time() * 1000) + self.clock_ms

    def _answer(self, asked: Asked, limit: int) -> list[list[Any]]:
        step = STEPS[asked.interval]
        now = self._now()
        opening = -(-(asked.start - self.offset) // step) * step + self.offset
        if self.gives_newest:
            opening = now // step * step - (asked.limit - 1) * step
        has_end = self.is_windowed or self.is_daily or self.window is not None
        stop = min(now, opening + (self.window or limit) * step) if has_end else now
        if self.is_daily:
            year = datetime.fromtimestamp(opening / 1000, UTC).year
            last = (
                datetime(year + 1, 1, 1, tzinfo=UTC).timestamp() * 1000 if step == DAY else opening // DAY * DAY + DAY
            )
            stop = min(now, int(last))
        if not has_end and opening < LISTED:
            opening = LISTED // step * step + self.offset
        rows: list[list[Any]] = []
        while opening < stop and (has_end or len(rows) < asked.limit):
            if self.exists(opening, step):
                numbers = self.changed.get(opening, number_of(opening))
                if opening + step > now:
                    numbers = [*numbers[:4], 0.0]
                rows.append(
                    [
                        int(opening / self.unit),
                        *(f"{number:.8f}" for number in numbers),
                        opening + step - 1,
                        "1",
                        1,
                        "1",
                        "1",
                        "0",
                    ]
                )
                if opening in self.doubles:
                    rows.append([*rows[-1][:5], "1", *rows[-1][6:]])
            elif self.delisted is not None and opening >= self.delisted:
                break
            opening += step
        return rows[: asked.limit] if self.is_daily else rows[-asked.limit :]

    async def _fail(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault == "slow":
            await asyncio.sleep(1)
            return web.json_response([])
        if fault == "html":
            return web.Response(text="<html>Maintenance</html>", content_type="text/html")
        if fault == "half":
            response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b"[[1")
            _close(request)
            return response
        if fault == "cut":
            _close(request)
            return web.Response()
        messages = {
            "400": {"code": -1121, "msg": "Invalid symbol."},
            "401": {"code": -2014, "msg": "API-key format invalid."},
            "451": {"code": 0, "msg": "Service unavailable from a restricted location according to 'b. Eligibility'."},
        }
        body = messages.get(
            fault, {"code": -1003, "msg": "Way too much request weight used."} if fault[0] == "4" else None
        )
        if body is None:
            return web.Response(status=int(fault), text="busy", headers=self.headers)
        return web.json_response(body, status=int(fault), headers=self.headers)


def _close(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.close()


def _symbol(base: str, quote: str) -> dict[str, Any]:
    return {
        "symbol": base + quote,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [],
        "permissions": ["SPOT"],
    }


def connect(exchange: Any, url: str) -> Any:
    """Let an exchange of ccxt ask the server at `url` instead of Binance; returns it."""
    exchange.urls["api"] = {
        name: address.replace("https://api.binance.com", url) if isinstance(address, str) else address
        for name, address in exchange.urls["api"].items()
    }
    exchange.has["fetchCurrencies"] = False
    exchange.options["fetchMarkets"] = {"types": ["spot"]}
    exchange.timeout_on_exit = 0
    return exchange


@asynccontextmanager
async def open_exchange(url: str, **config: Any) -> AsyncGenerator[Any]:
    """Open the Binance of ccxt on the server at `url`, without its own limit of requests."""
    options: Any = {"enableRateLimit": False, "timeout": 5000, **config}
    exchange = connect(ccxt.binance(options), url)
    try:
        yield exchange
    finally:
        await exchange.close()
