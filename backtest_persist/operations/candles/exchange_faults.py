"""Faults of exchanges: what the errors of ccxt mean, told by the names of their classes, as ccxt is not imported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from backtest_persist.errors import ErrorReason

__all__ = ("Fault", "UnreadableAnswerError", "find_fault", "read_retry_after", "read_server_time")

_SHOWN = 200
_STATUS = re.compile(r"\S+ (?:[A-Z]+ \S+ )?([1-5]\d\d)\b")
"""The HTTP status in a message of ccxt: ``binance GET https://... 503 Service Unavailable``, ``binance 429 ...``."""
_QUERY = re.compile(r"(https?://[^\s?]+)\?\S*")
_SECONDS = re.compile(r"\d{1,9}(\.\d+)?")
_RESTRICTED = ("restricted location", "from your country", "not available in your country", "restricted country")
_LASTING = frozenset((400, 405, 410))
"""The statuses that ccxt takes for an outage, and that the same request gets again."""
_BY_CLASS = {
    "AuthenticationError": ErrorReason.UNAUTHENTICATED,
    "NotSupported": ErrorReason.UNSUPPORTED,
    "BadSymbol": ErrorReason.UNSUPPORTED,
}


class UnreadableAnswerError(Exception):
    """An exchange answered with something else than candles, such as a page about maintenance."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an exchange, or with a request."""

    reason: ErrorReason
    may_pass: bool
    """Whether the same request can succeed later."""
    words: str
    """The words of ccxt or the exchange, without the queries of URLs, which may be signed."""
    is_understood: bool = True
    """False if ccxt, or the program, failed at the answer: the same request is made once more at most."""


def find_fault(error: Exception) -> Fault | None:
    """Return what an error of a request means; None for one that no exchange or network causes."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    words = " ".join(_QUERY.sub(r"\1", text).split())
    words = f"{type(error).__name__}: {words:.{_SHOWN}}" if words else type(error).__name__
    found = _STATUS.match(text)
    status = int(found[1]) if found else None
    is_network = _is_network(error) or _is_network(error.__cause__)
    if status == 451 or "RestrictedLocation" in names or any(part in text.lower() for part in _RESTRICTED):
        return Fault(ErrorReason.RESTRICTED_LOCATION, False, words)
    if status in (418, 429) or names & {"RateLimitExceeded", "DDoSProtection"}:
        return Fault(ErrorReason.RATE_LIMIT, True, words)
    for name, reason in _BY_CLASS.items():
        if name in names:
            return Fault(reason, False, words)
    if "RequestTimeout" in names or isinstance(error, TimeoutError):
        return Fault(ErrorReason.TIMEOUT, True, words)
    if is_network or ("ExchangeNotAvailable" in names and status is None):
        return Fault(ErrorReason.CONNECTION, True, words)
    if names & {"OperationFailed", "NetworkError"}:
        return Fault(ErrorReason.SERVER_ERROR, status not in _LASTING, words)
    if "BaseError" in names and type(error).__module__.startswith("ccxt"):
        return Fault(ErrorReason.SERVER_ERROR, False, words)
    if isinstance(error, UnreadableAnswerError):
        return Fault(ErrorReason.SERVER_ERROR, True, words)
    if isinstance(error, LookupError | TypeError | ValueError | AttributeError):  # ccxt takes any answer apart
        return Fault(ErrorReason.SERVER_ERROR, True, words, is_understood=False)
    return None


def _is_network(error: BaseException | None) -> bool:
    """Whether it is an error of aiohttp or a socket; ccxt hides a body that was cut in a plain ``ExchangeError``."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "aiohttp"


def read_retry_after(headers: Mapping[str, Any], now: float) -> float | None:
    """Return the seconds for which an exchange asks to wait, as of `now` (s since the epoch), or None."""
    text = _find_header(headers, "retry-after")
    if text is None:
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    moment = _read_date(text)
    return None if moment is None else max(0.0, moment - now)


def read_server_time(headers: Mapping[str, Any]) -> int | None:
    """Return the time of an answer by the clock of the exchange, in ms UTC, or None."""
    text = _find_header(headers, "date")
    moment = None if text is None else _read_date(text)
    return None if moment is None else int(moment * 1000)


def _find_header(headers: Mapping[str, Any], wanted: str) -> str | None:
    return next((str(value) for name, value in headers.items() if name.lower() == wanted), None)


def _read_date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
