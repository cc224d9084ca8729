"""Key components: what may be part of a context, and how components become one Redis key."""

from contextlib import suppress
from typing import Annotated, Any, cast, get_args

from bson import ObjectId
from bson.errors import InvalidId
from pydantic import BeforeValidator, ValidationInfo
from pydantic.fields import FieldInfo

from backtest_persist.core.instants import (
    INT64_MAX,
    INT64_MIN,
    EarlyTimes,
    checked_instant,
    checked_int64,
    refused,
    to_int,
)
from backtest_persist.errors import InvalidKeyError
from backtest_persist.mode import Mode

__all__ = (
    "INT64_MAX",
    "INT64_MIN",
    "STORED",
    "Flag",
    "FrameName",
    "Name",
    "Timestamp",
    "checked_flag",
    "checked_limit",
    "checked_name",
    "checked_timestamp",
    "is_instant",
    "join_key",
    "mode_word",
    "to_flag",
    "to_int",
    "to_object_id",
)


def checked_name(value: Any, what: str) -> str:
    """Return a key component that is a usable str; anything else is an `InvalidKeyError` naming `what`.

    An operator such as ``{"$gt": ""}`` in the place of a name would match other contexts, so only str passes.
    """
    if not isinstance(value, str):
        raise InvalidKeyError(f"{what} must be a str, not {type(value).__name__}.")
    if not value:
        raise InvalidKeyError(f"{what} must not be empty.")
    if "\0" in value:
        raise InvalidKeyError(f"{what} must not contain NUL.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidKeyError(f"{what} must not contain a lone surrogate.") from None
    return str.__str__(value)  # of a (str, Enum) the content; `str` would give the name of the member


def checked_flag(value: Any, what: str) -> bool:
    """Return a key component that is a bool, or that of a `Mode`; anything else, such as 1, is an `InvalidKeyError`."""
    value = to_flag(value)
    if not isinstance(value, bool):
        raise InvalidKeyError(f"{what} must be a bool or a Mode, not {type(value).__name__}.")
    return value


def to_flag(backtest: bool | Mode) -> bool:
    """Return the `backtest` of a mode; anything else is returned as it is."""
    return backtest.backtest if isinstance(backtest, Mode) else backtest


def checked_timestamp(value: Any, what: str, early: EarlyTimes = refused) -> int:
    """Return an instant in ms since the epoch; whole floats of a JavaScript writer pass. See `checked_instant`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return checked_instant(value, what, early)


def checked_limit(value: Any, what: str = "limit") -> int:
    """Return a number of rows that is an int of at least 0 and fits 64 bits."""
    count = to_int(value)
    if count is None:
        raise InvalidKeyError(f"{what} must be an int, not {type(value).__name__}.")
    if not 0 <= count <= INT64_MAX:
        raise InvalidKeyError(f"{what} must be 0 or more, and fit 64 bits.")
    return count


def _by_field(check: Any) -> BeforeValidator:
    def validate(value: Any, info: ValidationInfo) -> Any:
        return check(value, info.field_name or "key")

    return BeforeValidator(validate)


def _checked_frame(value: Any, what: str) -> str:
    return checked_name(value, what) if value != "" or not isinstance(value, str) else ""


def _instant(value: Any, info: ValidationInfo) -> int:
    what = info.field_name or "key"
    if info.context != STORED:  # what is stored already is read, whatever its unit
        early = cast("EarlyTimes", info.context) if callable(info.context) else refused
        return checked_timestamp(value, what, early)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    millis = to_int(value)
    if millis is None:
        raise InvalidKeyError(f"{what} must be an int in ms since the epoch, not {type(value).__name__}.")
    return checked_int64(millis, what)


STORED = "stored"
"""The validation context of what a store holds already."""

FrameName = Annotated[str, _by_field(_checked_frame)]
"""A name that may be empty: live trading has no frame."""

Name = Annotated[str, _by_field(checked_name)]
Flag = Annotated[bool, _by_field(checked_flag)]
_INSTANT = BeforeValidator(_instant)
Timestamp = Annotated[int, _INSTANT]


def is_instant(field: FieldInfo) -> bool:
    """Whether a field of a row is a `Timestamp`, or one that may be None."""
    options = [option for kind in get_args(field.annotation) for option in getattr(kind, "__metadata__", ())]
    return _INSTANT in field.metadata or _INSTANT in options


"""An instant: an aware datetime, or an int in ms since the epoch; see `instants.checked_instant`."""


def join_key(*components: str | int) -> str:
    """Join components with ``:``; all but the last get ``%`` and ``:`` percent-encoded, which keeps keys injective."""
    plain = ":".join(map(str, components))
    if "%" not in plain and plain.count(":") == len(components) - 1:
        return plain
    *head, last = map(str, components)
    return ":".join([*(part.replace("%", "%25").replace(":", "%3A") for part in head), last])


def mode_word(backtest: bool | Mode) -> str:
    """The word for a mode inside a key: ``backtest`` or ``live`` (paper trading counts as live)."""
    return "backtest" if to_flag(backtest) else "live"


def to_object_id(value: Any) -> ObjectId | None:
    """Return the id that 24 hex digits denote; None for anything else."""
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and len(value) == 24 and value.isascii():
        with suppress(InvalidId):
            return ObjectId(value)
    return None
