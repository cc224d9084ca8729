"""`fill_candles`: a series is completed from an exchange, here the Binance of ccxt on a server of the tests."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import ccxt
import pytest

from backtest_persist import CandleDbService, Container, ErrorReason, ExchangeError, InvalidKeyError, SettingsError
from backtest_persist.backends.dummy import DummyBackend
from backtest_persist.backends.json.backend import JsonBackend
from backtest_persist.core.persist_instance import Services
from backtest_persist.operations.candles.filling import CandlesFilled, fill_candles
from backtest_persist.operations.candles.voids import LATE_MS
from tests.support.exchange_server import (
    DAY,
    HOUR,
    LISTED,
    MINUTE,
    STEPS,
    Asked,
    ExchangeServer,
    number_of,
    open_exchange,
)

pytestmark = pytest.mark.parametrize("driver", ["motor"], indirect=True)

SERIES = ("BTCUSDT", "1m", "binance")


async def fill(
    ioc: Services, server: ExchangeServer, since: int, until: int | None, interval: str = "1m", **options: Any
) -> CandlesFilled:
    """Fill a series from the server."""
    async with open_exchange(server.url) as exchange:
        return await fill_candles(ioc, exchange, "BTCUSDT", interval, since, until, **options)


async def stored(ioc: Services, since: int, until: int) -> list[list[Any]]:
    """Return what is stored of the series, as rows of ccxt."""
    found = await ioc.db_service(CandleDbService).find_data(*SERIES, since, (until - since) // MINUTE)
    return [list(candle.values()) for candle in found]


def explained(report: CandlesFilled) -> bool:
    """Whether all gaps were filled or explained, and nothing is odd."""
    return not any((report.late, report.remaining, report.invalid, report.different))


async def test_only_gaps_are_asked_for(container: Container) -> None:
    """What is stored is not fetched again, and afterwards the series is that of the exchange."""
    since, until = LISTED, LISTED + 3000 * MINUTE
    async with ExchangeServer() as server:
        await container.candle_db_service.store(*SERIES, server.candles(since + 1000 * MINUTE, since + 2500 * MINUTE))
        planned = await fill(container, server, since, until, dry_run=True)
        assert not server.asked
        gaps = [(since, since + 1000 * MINUTE), (since + 2500 * MINUTE, until)]
        assert (planned.gaps, planned.asked, planned.planned, planned.new) == (gaps, 1500, 2, 0)

        report = await fill(container, server, since, until)
        assert server.asked == [Asked("1m", since, 1000), Asked("1m", since + 2500 * MINUTE, 505)]
        assert await stored(container, since, until) == server.candles(since, until)
        assert (report.gaps, report.asked, report.new, report.same, report.requests) == (gaps, 1500, 1500, 0, 2)
        assert explained(report)
        assert not report.missing
        again = await fill(container, server, since, until)
        assert (again.requests, again.new, again.gaps) == (0, 0, [])


async def test_gaps_that_are_near_share_a_request(container: Container) -> None:
    """A thousand gaps of a minute take one request for each page in which some lie; what comes along is compared."""
    since, until = LISTED, LISTED + 5000 * MINUTE
    async with ExchangeServer() as server:
        odd = server.candles(since, until)
        await container.candle_db_service.store(*SERIES, [row for n, row in enumerate(odd) if n % 5])
        server.changed[since + 7 * MINUTE] = [1.0, 2.0, 0.5, 1.5, 9.0]
        report = await fill(container, server, since, until)
        assert (report.asked, report.new, report.planned, report.requests) == (1000, 1000, 5, 5)
        assert (report.same, report.different) == (3999, [since + 7 * MINUTE])
        assert await stored(container, since, until) == odd


async def test_what_the_exchange_does_not_have_is_remembered(container: Container) -> None:
    """One request tells that there is nothing before the listing; no hole is asked for twice, unless one says so."""
    since, until = LISTED - 400 * DAY, LISTED + 24 * DAY
    minutes = [(LISTED + n * MINUTE, LISTED + (n + 1) * MINUTE) for n in range(10, 2000, 10)]
    outage = (LISTED + 3 * DAY, LISTED + 23 * DAY)
    async with ExchangeServer(holes=[*minutes, outage]) as server:
        report = await fill(container, server, since, LISTED + 2000 * MINUTE)
        assert [asked.start for asked in server.asked] == [since, LISTED + 1110 * MINUTE]
        assert report.missing == [(since, LISTED), *minutes]
        assert explained(report)
        assert report.new == 2000 - len(minutes)
        keys = await container.interval_db_service.list_keys("missing-candles:binance:BTCUSDT:1m")
        assert sorted(keys) == ["2021-11", "2023-01"]
        row = await container.interval_db_service.find_by_context("missing-candles:binance:BTCUSDT:1m", "2021-11")
        assert row is not None
        assert row.payload == {"ranges": [[since, LISTED]]}

        server.asked.clear()
        again = await fill(container, server, since, LISTED + 2000 * MINUTE)
        assert (server.asked, again.missing, again.asked) == ([], report.missing, 0)
        earlier = await fill(container, server, since - 90 * DAY, LISTED + 2000 * MINUTE)
        assert [asked.start for asked in server.asked] == [since - 90 * DAY]
        assert earlier.missing == [(since - 90 * DAY, LISTED), *minutes]
        keys = await container.interval_db_service.list_keys("missing-candles:binance:BTCUSDT:1m")
        assert sorted(keys) == ["2021-08", "2023-01"]

        server.asked.clear()
        await fill(container, server, LISTED + 2 * DAY, until)
        assert await stored(container, LISTED + 2 * DAY, until) == server.candles(LISTED + 2 * DAY, until)
        assert len(server.asked) == 3  # two days of candles; the outage costs none

        server.holes.remove(*minutes[0])
        server.asked.clear()
        new = await fill(container, server, since, LISTED + 2000 * MINUTE, ask_again=True)
        assert (new.new, new.missing) == (1, [(since, LISTED), *minutes[1:]])
        assert len(server.asked) == 2
        server.asked.clear()
        assert not (await fill(container, server, since, LISTED + 2000 * MINUTE)).requests


@pytest.mark.parametrize("page", [1000, 300])
async def test_an_exchange_that_answers_by_windows(container: Container, page: int) -> None:
    """Candles of days show how long a void is; fewer candles than were asked for are no hole."""
    since, until = LISTED - 1500 * DAY, LISTED + 4000 * MINUTE
    holes = [(LISTED + 1500 * MINUTE, LISTED + 3100 * MINUTE), (LISTED + 3200 * MINUTE, LISTED + 3201 * MINUTE)]
    async with ExchangeServer(holes=holes, is_windowed=True, page=page) as server:
        report = await fill(container, server, since, until)
        assert await stored(container, LISTED, until) == server.candles(LISTED, until)
        assert report.missing == [(since, LISTED), *holes]
        assert explained(report)
        assert len(server.asked) < (25 if page == 1000 else 60)
        assert not (await fill(container, server, since, until)).requests


@pytest.mark.parametrize(
    ("interval", "listed", "options", "requests"),
    [
        ("1m", 0, {"window": 300}, 25),
        ("1m", 0, {"is_daily": True}, 12),
        ("1h", 400, {"window": 200}, 20),
        ("1h", 400, {"is_daily": True}, 50),
    ],
    ids=["window", "day", "listed late", "listed late, day"],
)
async def test_an_exchange_that_answers_for_a_shorter_time(
    container: Container, interval: str, listed: int, options: dict[str, Any], requests: int
) -> None:
    """Whatever ccxt says of its limit, only the time for which it has shown to answer can be without candles."""
    start, step = LISTED + listed * DAY, STEPS[interval]
    holes = [(LISTED, start), (start + 100 * MINUTE, start + 450 * MINUTE), (start + 22 * HOUR, start + DAY)]
    if interval == "1h":
        holes = holes[:1]
    until = start + 3 * DAY
    async with ExchangeServer(holes=holes, **options) as server:
        report = await fill(container, server, LISTED, until, interval)
        expected = [row[0] for row in server.candles(LISTED, until, step)]
        found = await container.candle_db_service.find_last("BTCUSDT", interval, "binance", 10_000, until)
        assert [row.timestamp for row in found] == expected
        assert report.missing == [hole for hole in holes if hole[0] < hole[1]]
        assert explained(report)
        assert len(server.asked) < requests
        assert not (await fill(container, server, LISTED, until, interval)).requests


async def test_an_outage_with_empty_answers(container: Container) -> None:
    """Nothing counts as missing before a candle was seen, nor while one that was seen is not given again."""
    since, until = LISTED, LISTED + 1500 * MINUTE
    async with ExchangeServer(window=1000) as server:
        server.faults.extend(["empty"] * 100)
        report = await fill(container, server, since - 5 * 365 * DAY, until)
        assert (report.new, report.missing, report.is_complete) == (0, [], False)
        assert report.remaining == [(since - 5 * 365 * DAY, until)]
        assert not await container.interval_db_service.list_keys("missing-candles:binance:BTCUSDT:1m")
        server.faults.clear()
        server.faults.extend(["empty"] * 3)
        report = await fill(container, server, since, until)
        assert (report.new, report.missing) == (1500, [])
    async with ExchangeServer(window=1000) as server:
        server.faults.extend(["", *["empty"] * 20])
        with pytest.raises(ExchangeError, match="no candles where it gave some before") as caught:
            await fill(container, server, since, until, exchange_name="other", retry_seconds=2)
        assert caught.value.retryable
        server.faults.clear()
        server.faults.extend(["empty"] * 2)
        report = await fill(container, server, since, until, exchange_name="other")
        assert (report.new, report.missing, report.is_complete) == (500, [], True)


async def test_times_in_another_unit(container: Container) -> None:
    """Candles none of which lies in the time that was asked for are a fault, and nothing is missing."""
    bounds = LISTED, LISTED + 10 * MINUTE
    for unit in (1000, 0.001):
        async with ExchangeServer(unit=unit) as server, open_exchange(server.url) as exchange:
            if unit == 1000:  # ccxt drops what lies before the time that was asked for
                report = await fill_candles(container, exchange, "BTCUSDT", "1m", *bounds)
                assert (report.missing, report.remaining) == ([], [bounds])

                async def fetch_seconds(*arguments: Any, given: Any = exchange.fetch_ohlcv) -> Any:
                    rows = await given(*arguments[:2], 0, *arguments[3:])
                    return [[row[0] or 1, *row[1:]] for row in rows]

                exchange.fetch_ohlcv = fetch_seconds
            with pytest.raises(ExchangeError, match="before the time" if unit == 1000 else "after the present"):
                await fill_candles(container, exchange, "BTCUSDT", "1m", *bounds)
        assert not await container.interval_db_service.list_keys("missing-candles:binance:BTCUSDT:1m")


async def test_an_exchange_that_gives_its_newest_candles(container: Container) -> None:
    """As many as it gives are stored, also where few are missing; what is older counts as missing."""
    now = int(time.time() * 1000) // MINUTE * MINUTE
    gap = (now - 10 * HOUR, now - 10 * HOUR + 5 * MINUTE)
    async with ExchangeServer(gives_newest=True) as server:
        odd = [row for row in server.candles(now - 12 * HOUR, now) if not gap[0] <= row[0] < gap[1]]
        await container.candle_db_service.store(*SERIES, odd)
        report = await fill(container, server, now - 12 * HOUR, now)
        assert (report.new, report.missing, report.requests) == (5, [], 2)
        report = await fill(container, server, now - 30 * HOUR, now)
        first = (await container.candle_db_service.find_data(*SERIES, now - 30 * HOUR, 1800))[0]["timestamp"]
        assert now - 1000 * MINUTE <= first <= now - 998 * MINUTE
        assert report.missing == [(now - 30 * HOUR, first)]
        assert not report.remaining


async def test_the_end_of_a_series(container: Container) -> None:
    """An open candle is not stored; one that has closed and may still come is asked for again, older ones are not."""
    now = int(time.time() * 1000) // MINUTE * MINUTE
    since = now - 30 * HOUR
    async with ExchangeServer(holes=[(now - 20 * HOUR, now - 19 * HOUR), (now - 3 * MINUTE, now)]) as server:
        report = await fill(container, server, since, None)
        closed = await container.candle_db_service.find_last(*SERIES, 1)
        assert closed[0].timestamp == now - 4 * MINUTE
        assert report.until >= now
        assert report.missing == [(now - 20 * HOUR, now - 19 * HOUR)]
        assert report.late == [(now - 3 * MINUTE, report.until)]
        assert not report.remaining
        server.holes.remove(now - 3 * MINUTE, now)
        server.asked.clear()
        again = await fill(container, server, since, None)
        assert server.asked[0].start == now - 3 * MINUTE
        assert await stored(container, since, now) == server.candles(since, now)
        assert again.new >= 3

    gone = now - 2 * DAY
    async with ExchangeServer(delisted=gone) as server:
        report = await fill(container, server, gone - HOUR, None, exchange_name="other")
        ended = report.missing[-1][1]
        assert report.missing == [(gone, ended)]
        assert now - ended >= LATE_MS - 2 * MINUTE
        assert (report.late, report.remaining) == ([(ended, report.until)], [])
        assert (await fill(container, server, gone - HOUR, None, exchange_name="other")).requests <= 6


async def test_a_candle_that_is_open_by_the_clock_of_the_exchange_is_not_stored(container: Container) -> None:
    """The clock of this computer may be ahead: then the last candle may still change, and the next fill asks again."""
    now = int(time.time() * 1000) // MINUTE * MINUTE
    async with ExchangeServer() as server:
        server.clock_ms = -5 * MINUTE
        report = await fill(container, server, now - HOUR, now)
        assert await stored(container, now - HOUR, now) == server.candles(now - HOUR, now - 5 * MINUTE)[: report.new]
        assert 54 <= report.new <= 55
        assert report.late[-1][1] == now
        server.clock_ms = 0
        await fill(container, server, now - HOUR, now)
        assert await stored(container, now - HOUR, now) == server.candles(now - HOUR, now)


async def test_faults_that_pass(container: Container) -> None:
    """Requests are made again, after the time that the exchange asks for; nothing is lost, or taken for missing."""
    since, until = LISTED, LISTED + 6000 * MINUTE
    waits: list[tuple[float, str]] = []

    class Display:
        total = done = 0

        def begin(self, total: int) -> None:
            self.total = total

        def advance(self, done: int) -> None:
            self.done += done

        def wait(self, seconds: float, why: str) -> None:
            waits.append((seconds, why))

    display = Display()
    async with ExchangeServer() as server, open_exchange(server.url, timeout=500) as exchange:
        server.headers = {"retry-AFTER": "1"}
        server.faults.extend(["429", "", "503", "", "cut", "cut", "", "half", "", "slow", "html", "", "empty"])
        report = await fill_candles(container, exchange, *SERIES[:2], since, until, progress=display)
    assert await stored(container, since, until) == server.candles(since, until)
    assert server.moments[1] - server.moments[0] >= 1
    assert (report.retries, report.requests) == (6, 14)
    assert explained(report)
    assert not report.missing
    reasons = [why.partition(":")[0] for _, why in waits]
    assert reasons == ["rate limit", "server error", "connection", "connection", "timeout", "server error"]
    assert [seconds for seconds, _ in waits] == [1.0, 1.0, 0.5, 0.5, 0.5, 1.0]
    assert (display.done, display.total) == (6000, 6000)


@pytest.mark.parametrize(
    ("fault", "reason", "says"),
    [
        ("451", ErrorReason.RESTRICTED_LOCATION, "does not serve the location"),
        ("401", ErrorReason.UNAUTHENTICATED, "apiKey"),
        ("400", ErrorReason.UNSUPPORTED, "BadSymbol"),
    ],
)
async def test_faults_that_last(container: Container, fault: str, reason: ErrorReason, says: str) -> None:
    """They are errors at once, which say what to do; what was fetched before is stored."""
    since, until = LISTED, LISTED + 3000 * MINUTE
    async with ExchangeServer() as server:
        server.faults.extend(["", fault])
        with pytest.raises(ExchangeError, match=says) as caught:
            await fill(container, server, since, until)
        assert (caught.value.reason, caught.value.retryable, caught.value.exchange) == (reason, False, "binance")
        assert len(server.asked) == 2
        assert await stored(container, since, until) == server.candles(since, since + 1000 * MINUTE)


async def test_an_exchange_that_does_not_answer_for_long(container: Container) -> None:
    """The error comes when the time for retries is over, or at once if the exchange asks to wait for longer."""
    since, until = LISTED, LISTED + 2000 * MINUTE
    async with ExchangeServer() as server:
        server.faults.extend(["", *["503"] * 10])
        with pytest.raises(ExchangeError, match=r"asked 2 times.*run the fill again") as caught:
            await fill(container, server, since, until, retry_seconds=1)
        assert caught.value.retryable
        assert len(server.asked) == 3
        server.faults.clear()
        server.headers = {"Retry-After": "3600"}
        server.faults.extend(["418"])
        with pytest.raises(ExchangeError, match="asks to wait for 3,600 s") as caught:
            await fill(container, server, since, until)
        assert (caught.value.retryable, caught.value.retry_after) == (True, 3600)
        assert (await fill(container, server, since, until)).new == 1000
    async with open_exchange(server.url) as exchange:  # nobody listens there any more
        with pytest.raises(ExchangeError) as caught:
            await fill_candles(container, exchange, "BTCUSDT", "1m", since, until, retry_seconds=0)
        assert caught.value.reason is ErrorReason.CONNECTION


async def test_symbols_intervals_and_names(container: Container) -> None:
    """A market is found by either spelling and stored under that of the exchange; what cannot be is told."""
    until = LISTED + 10 * MINUTE
    async with ExchangeServer() as server, open_exchange(server.url) as exchange:
        for symbol in ("BTCUSDT", "BTC/USDT"):
            report = await fill_candles(container, exchange, symbol, "1m", LISTED, until, dry_run=True)
            assert (report.symbol, report.exchange_name) == ("BTCUSDT", "binance")
        report = await fill_candles(
            container, exchange, "BTCUSDT", "1m", LISTED, until, ccxt_symbols=True, exchange_name="b2"
        )
        assert (report.symbol, report.exchange_name, report.new) == ("BTC/USDT", "b2", 10)
        assert await container.candle_db_service.has_candle("BTC/USDT", "1m", "b2", LISTED)
        with pytest.raises(InvalidKeyError, match=r"'BTCUSD' on binance; did you mean .*BTCUSDT"):
            await fill_candles(container, exchange, "BTCUSD", "1m", LISTED, until)
        with pytest.raises(InvalidKeyError, match="interval must be one of"):
            await fill_candles(container, exchange, "BTCUSDT", "1w", LISTED, until)
        with pytest.raises(InvalidKeyError, match=r"since .* must lie before until"):
            await fill_candles(container, exchange, "BTCUSDT", "1m", until, LISTED)
        with pytest.raises(InvalidKeyError, match=r"since .* must lie before now"):
            await fill_candles(container, exchange, "BTCUSDT", "1m", int(time.time() * 1000) + DAY)

        del exchange.timeframes["5m"]
        with pytest.raises(InvalidKeyError, match="no candles of 5m; both sides know 1m 3m 15m"):
            await fill_candles(container, exchange, "BTCUSDT", "5m", LISTED, until)
        swap = {**exchange.market("BTC/USDT"), "symbol": "BTC/USDT:USDT", "spot": False, "swap": True, "type": "swap"}
        exchange.markets["BTC/USDT:USDT"] = swap
        exchange.markets_by_id["BTCUSDT"].append(swap)
        with pytest.raises(InvalidKeyError, match="BTCUSDT is the symbol of BTC/USDT as well as of BTC/USDT:USDT"):
            await fill_candles(container, exchange, "BTC/USDT:USDT", "1m", LISTED, until)
        with pytest.raises(InvalidKeyError, match="Give another exchange_name"):
            await fill_candles(container, exchange, "BTC/USDT:USDT", "1m", LISTED, until, exchange_name="binance")
        for has, says in (("emulated", "last trades"), (None, "does not give")):
            exchange.has["fetchOHLCV"] = has
            with pytest.raises(ExchangeError, match=says):
                await fill_candles(container, exchange, "BTCUSDT", "1m", LISTED, until)
    with pytest.raises(SettingsError, match=r"ccxt\.async_support, not ccxt\.binance"):
        await fill_candles(container, ccxt.binance(), "BTCUSDT", "1m", LISTED, until)


async def test_candles_that_cannot_be_stored(container: Container) -> None:
    """One that cannot be real is reported and stays a gap, which is not remembered as missing."""
    since, until = LISTED, LISTED + 10 * MINUTE
    bad = since + 4 * MINUTE
    async with ExchangeServer() as server:
        server.doubles.add(bad)
        report = await fill(container, server, since, until)
        assert (report.new, report.missing, report.remaining) == (9, [], [(bad, bad + MINUTE)])
        assert [at for at, _ in report.invalid] == [bad, bad]
        server.doubles.clear()
        server.changed[bad] = [5.0, 4.0, 6.0, 5.0, 1.0]
        report = await fill(container, server, since, until)
        assert (report.new, report.missing, report.remaining) == (0, [], [(bad, bad + MINUTE)])
        assert report.invalid[0][0] == bad
        assert "high is below" in report.invalid[0][1]
        server.changed[bad] = [9e8, 9e8, 9e8, 9e8, 1.0]
        report = await fill(container, server, since, until)
        assert (report.new, report.outliers, report.remaining) == (0, [bad], [(bad, bad + MINUTE)])
        report = await fill(container, server, since, until, allow_outliers=True)
        assert (report.new, report.outliers, report.remaining) == (1, [bad], [])


async def test_an_exchange_without_volumes(container: Container) -> None:
    """Its candles are reported, with the option that stores 0."""
    bounds = LISTED, LISTED + 3 * MINUTE
    async with ExchangeServer() as server, open_exchange(server.url) as exchange:

        async def fetch(*arguments: Any, given: Any = exchange.fetch_ohlcv) -> Any:
            return [[*row[:5], None if row[0] < LISTED + 2 * MINUTE else row[5]] for row in await given(*arguments)]

        exchange.fetch_ohlcv = fetch
        report = await fill_candles(container, exchange, "BTCUSDT", "1m", *bounds)
        says = "the exchange gives no volume; to store 0, give no_volume (--no-volume)"
        assert report.invalid == [(LISTED, says), (LISTED + MINUTE, says)]
        assert (report.new, report.remaining) == (1, [(LISTED, LISTED + 2 * MINUTE)])
        report = await fill_candles(container, exchange, "BTCUSDT", "1m", *bounds, no_volume=True)
        assert report.is_complete
        assert [row[5] for row in await stored(container, *bounds)] == [0, 0, number_of(LISTED + 2 * MINUTE)[4]]


async def test_answers_that_ccxt_does_not_understand(container: Container) -> None:
    """Candles are asked for once more, markets are not; then an error says that the answer was not understood."""
    bounds = LISTED, LISTED + 3 * MINUTE
    calls: list[str] = []

    async def fail(*arguments: Any) -> Any:
        calls.append("call")
        raise AttributeError("'NoneType' object has no attribute 'get'")

    async with ExchangeServer() as server, open_exchange(server.url) as exchange:
        for name, times in (("fetch_ohlcv", 2), ("load_markets", 1)):
            calls.clear()
            setattr(exchange, name, fail)
            with pytest.raises(ExchangeError, match=r"was not understood.*AttributeError") as caught:
                await fill_candles(container, exchange, "BTCUSDT", "1m", *bounds)
            assert not caught.value.retryable
            assert len(calls) == times


async def test_days_that_open_elsewhere(container: Container) -> None:
    """They are refused, or with the length of their sessions stored under the UTC day in which these close."""
    since, until = LISTED + DAY, LISTED + 12 * DAY
    async with ExchangeServer(offset=16 * HOUR) as server:
        with pytest.raises(ExchangeError, match=r"opens the 1d candles of BTC/USDT 16:00 later .* session_length"):
            await fill(container, server, since, until, "1d")
        with pytest.raises(InvalidKeyError, match="session_length is for candles of 1d, not of '1h'"):
            await fill(container, server, since, until, "1h", session_length=timedelta(days=1))
        report = await fill(container, server, since, until, "1d", session_length=timedelta(days=1))
        assert (report.new, report.missing, report.remaining) == (11, [], [])
        found = await container.candle_db_service.find_data("BTCUSDT", "1d", "binance", since, 11)
        assert [list(candle.values()) for candle in found] == [
            [day, *number_of(day - 8 * HOUR)] for day in range(since, until, DAY)
        ]
        assert not (await fill(container, server, since, until, "1d", session_length=DAY)).requests


async def test_other_backends(container: Container, tmp_path: Path) -> None:
    """A series in JSON files is filled alike, with what is missing; the dummy backend asks, and keeps nothing."""
    since, until = LISTED - DAY, LISTED + 300 * MINUTE
    hole = (LISTED + 5 * MINUTE, LISTED + 7 * MINUTE)
    async with ExchangeServer(holes=[hole]) as server:
        services = JsonBackend(tmp_path).services
        report = await fill(services, server, since, until)
        assert (report.new, report.missing) == (298, [(since, LISTED), hole])
        assert await stored(services, since, until) == server.candles(since, until)
        assert not (await fill(JsonBackend(tmp_path).services, server, since, until)).requests
        assert (await fill(DummyBackend().services, server, since, until)).new == 298


async def test_a_cancelled_fill_stores_the_page_at_hand(container: Container) -> None:
    """Whenever it is cancelled, a page is stored whole, with what is missing in it, or not at all."""
    since, until = LISTED, LISTED + 12_000 * MINUTE
    holes = [(at, at + MINUTE) for at in range(LISTED + 500 * MINUTE, until, 1000 * MINUTE)]
    count, asked = 0, 0
    async with ExchangeServer(holes=holes) as server:
        for turn in range(6):
            filling = asyncio.create_task(fill(container, server, since, until))
            while len(server.asked) == asked or (turn % 2 and await container.candle_db_service.count() == count):
                await asyncio.sleep(0)
            filling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await filling
            asked = len(server.asked)
            now = await container.candle_db_service.count()
            assert now >= count + 1000 * (turn % 2)
            assert now % 1000 == 0
            rest = await fill(container, server, since, until, dry_run=True)
            assert rest.gaps == [(since + (now + now // 1000) * MINUTE, until)]
            count = now
        await fill(container, server, since, until)
        assert await stored(container, since, until) == server.candles(since, until)
