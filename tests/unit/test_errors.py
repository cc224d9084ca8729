"""The data that errors carry besides their message, which copies keep."""

import copy
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from backtest_persist import errors
from backtest_persist.errors import (
    BacktestPersistError,
    ErrorReason,
    IndexConflictError,
    LeaseHeldError,
    LeaseLostError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)

CLASSES: list[type[BacktestPersistError]] = [
    error for name in errors.__all__ if issubclass(error := getattr(errors, name), BacktestPersistError)
]
DATA: dict[str, Any] = {
    "collection": "signal-items",
    "context": {"symbol": "BTCUSDT", "strategy_name": "s", "exchange_name": "e"},
    "retryable": True,
    "stored": 7,
    "server": "MongoDB",
    "host": "localhost:27017",
    "setting": "CC_MONGO_CONNECTION_STRING",
    "reason": ErrorReason.TIMEOUT,
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": lambda error: error.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": lambda error, p=protocol: pickle.loads(pickle.dumps(error, p)) for protocol in range(6)},
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("error_type", CLASSES)
def test_a_copy_keeps_class_message_and_data(error_type: type[BacktestPersistError], way: Callable[[Any], Any]) -> None:
    """Whichever way an error is copied, or sent to another process, a program can still decide by it."""
    error = error_type("What happened.", **DATA)
    other = way(error)
    assert type(other) is error_type
    assert other is not error
    assert str(other) == "What happened."
    assert {name: getattr(other, name) for name in DATA} == DATA


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
def test_a_copy_of_an_index_conflict_keeps_the_names_of_the_indexes(way: Callable[[Any], Any]) -> None:
    """They come on top of what every error carries."""
    other = way(IndexConflictError("Narrow.", indexes=("a_1", "b_1"), reason=ErrorReason.NARROW_INDEX))
    assert other.indexes == ("a_1", "b_1")
    assert other.narrow
    assert not IndexConflictError("Blocked.", reason=ErrorReason.CONFLICTING_INDEX).narrow


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("error_type", [LeaseHeldError, LeaseLostError])
def test_a_copy_of_an_error_about_a_lease_keeps_the_process(
    error_type: type[LeaseHeldError | LeaseLostError], way: Callable[[Any], Any]
) -> None:
    """Host, pid and time come on top of what every error carries."""
    since = datetime(2026, 1, 2, tzinfo=UTC)
    other = way(error_type("Held.", host="box", pid=77, since=since))
    assert (other.host, other.pid, other.since) == ("box", 77, since)


def test_a_copy_has_the_cause_of_the_original_and_a_traceback_of_its_own() -> None:
    """Several callers that share a batch each raise one; the traceback of one does not grow in the other."""
    with pytest.raises(StoreUnavailableError) as caught:
        raise StoreUnavailableError("Gone.") from ConnectionError("refused")
    error = caught.value.copy()
    assert error.__cause__ is caught.value.__cause__
    assert isinstance(error.__cause__, ConnectionError)
    assert error.__traceback__ is None


def raised(error: BacktestPersistError) -> str:
    """Return the traceback of an error that is raised while a long one of a driver is being handled."""
    try:
        try:
            raise ConnectionError("of the driver")
        except ConnectionError:
            raise error  # noqa: B904  # the context is what matters here
    except BacktestPersistError as caught:
        return "".join(traceback.format_exception(caught))


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
def test_a_copy_hides_what_the_original_hides(way: Callable[[Any], Any]) -> None:
    """`raise ... from None` keeps the traceback of a driver out of a notebook, whichever caller of a batch gets it."""
    shown, hidden = StoreUnavailableError("Gone."), StoreUnavailableError("Gone.")
    hidden.__suppress_context__ = True
    assert "of the driver" in raised(way(shown))
    assert "of the driver" not in raised(way(hidden))


@pytest.mark.parametrize("error_type", CLASSES)
def test_what_nobody_has_said_is_none(error_type: type[BacktestPersistError]) -> None:
    """Without data an error has its message; whether a call may be made again follows from the class."""
    error = error_type("What happened.")
    assert {name: getattr(error, name) for name in DATA if name != "retryable"} == dict.fromkeys(
        name for name in DATA if name != "retryable"
    )
    assert error.retryable is (error_type in (LeaseHeldError, StoreUnavailableError, WriteOutcomeUnknownError))
    assert error_type("Not again.", retryable=False).retryable is False


def test_the_context_of_an_error_does_not_change_with_the_mapping_that_it_was_given() -> None:
    """An error is read later than it was made."""
    context = {"symbol": "BTCUSDT"}
    error = BacktestPersistError("What happened.", context=context)
    context["symbol"] = "ETHUSDT"
    assert error.context == {"symbol": "BTCUSDT"}
