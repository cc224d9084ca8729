"""What the errors of ccxt mean, with the messages that ccxt builds."""

from email.utils import formatdate
from typing import Any

import aiohttp
import ccxt
import pytest

from backtest_persist import ErrorReason
from backtest_persist.operations.candles.exchange_faults import (
    UnreadableAnswerError,
    find_fault,
    read_retry_after,
    read_server_time,
)

URL = "https://api.binance.com/api/v3/klines?symbol=BTCUSDT&signature=5ec7e7"


def with_cause(error: Exception, cause: Exception) -> Exception:
    """Return an error with the cause that ``raise ... from`` gives it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "may_pass"),
    [
        (ccxt.DDoSProtection("binance 429 Too Many Requests {}"), ErrorReason.RATE_LIMIT, True),
        (ccxt.DDoSProtection("binance 418 I'm a teapot {}"), ErrorReason.RATE_LIMIT, True),
        (ccxt.RateLimitExceeded(f"okx GET {URL} 429 Too Many Requests"), ErrorReason.RATE_LIMIT, True),
        (ccxt.ExchangeNotAvailable(f"binance GET {URL} 451 Unavailable {{}}"), ErrorReason.RESTRICTED_LOCATION, False),
        (
            ccxt.ExchangeNotAvailable(f"bybit GET {URL} 403 Forbidden ... block access from your country."),
            ErrorReason.RESTRICTED_LOCATION,
            False,
        ),
        (ccxt.RestrictedLocation("kraken {}"), ErrorReason.RESTRICTED_LOCATION, False),
        (ccxt.ExchangeNotAvailable(f"binance GET {URL} 403 Forbidden"), ErrorReason.SERVER_ERROR, True),
        (ccxt.ExchangeNotAvailable(f"binance GET {URL} 503 Service Unavailable"), ErrorReason.SERVER_ERROR, True),
        (ccxt.ExchangeNotAvailable(f"binance GET {URL} 400 Bad Request"), ErrorReason.SERVER_ERROR, False),
        (ccxt.OnMaintenance("kraken {}"), ErrorReason.CONNECTION, True),
        (ccxt.OperationFailed("binance {}"), ErrorReason.SERVER_ERROR, True),
        (ccxt.RequestTimeout(f"binance GET {URL}"), ErrorReason.TIMEOUT, True),
        (ccxt.RequestTimeout(f"binance GET {URL} 504 Gateway Timeout"), ErrorReason.TIMEOUT, True),
        (ccxt.ExchangeNotAvailable(f"binance GET {URL}"), ErrorReason.CONNECTION, True),
        (
            with_cause(ccxt.ExchangeError(f"binance GET {URL}"), aiohttp.ClientPayloadError("cut")),
            ErrorReason.CONNECTION,
            True,
        ),
        (ConnectionResetError("reset"), ErrorReason.CONNECTION, True),
        (TimeoutError(), ErrorReason.TIMEOUT, True),
        (UnreadableAnswerError("it answers with '<html>'"), ErrorReason.SERVER_ERROR, True),
        (KeyError("0"), ErrorReason.SERVER_ERROR, True),
        (ccxt.AuthenticationError("binance {}"), ErrorReason.UNAUTHENTICATED, False),
        (ccxt.BadSymbol("binance {}"), ErrorReason.UNSUPPORTED, False),
        (ccxt.NotSupported("binance {}"), ErrorReason.UNSUPPORTED, False),
        (ccxt.BadRequest("binance {}"), ErrorReason.SERVER_ERROR, False),
        (ccxt.ExchangeError("binance {}"), ErrorReason.SERVER_ERROR, False),
    ],
)
def test_an_error_of_ccxt(error: Any, reason: ErrorReason, may_pass: bool) -> None:
    """Its class and its status tell whether the same request can succeed later; the query is not shown."""
    fault = find_fault(error)
    assert fault is not None
    assert (fault.reason, fault.may_pass) == (reason, may_pass)
    assert fault.words.startswith(type(error).__name__)
    assert fault.is_understood is not isinstance(error, KeyError)
    assert "5ec7e7" not in fault.words


def test_an_error_of_the_program() -> None:
    """It is no fault of the exchange, so that it is raised as it is."""
    assert find_fault(RuntimeError("closed")) is None
    assert find_fault(ZeroDivisionError()) is None


def test_headers_in_any_case() -> None:
    """The time to wait is in seconds or a date; the clock of the exchange is in whole seconds."""
    now = 1_700_000_000
    assert read_retry_after({"retry-after": "7"}, now) == 7
    assert read_retry_after({"Retry-After": "0.5"}, now) == 0.5
    assert read_retry_after({"RETRY-AFTER": formatdate(now + 90, usegmt=True)}, now) == 90
    assert read_retry_after({"Retry-After": formatdate(now - 90, usegmt=True)}, now) == 0
    assert read_retry_after({"Retry-After": "soon"}, now) is None
    assert read_retry_after({"Retry-After": "nan"}, now) is None
    assert read_retry_after({}, now) is None
    assert read_server_time({"DATE": formatdate(now, usegmt=True)}) == now * 1000
    assert read_server_time({"Date": "today"}) is None
    assert read_server_time({}) is None
