"""Every error this package raises.

::

    BacktestPersistError
    ├── InvalidKeyError           a context, key, window or filter is unusable
    ├── InvalidPayloadError       a payload or candle cannot be stored exactly
    ├── InvalidWhenError          a simulation time is missing, naive or no number
    ├── WriteRejectedError        the server refused; the stored value is unchanged
    ├── WriteOutcomeUnknownError  may have been applied; the next acknowledged write settles it
    ├── StoreUnavailableError     no usable answer within the deadline; nothing was applied
    ├── IndexConflictError        a unique index cannot be relied on; how to repair it
    ├── LeaseHeldError            another writer holds the lease of this context
    ├── LeaseLostError            another writer has taken the lease; this one may not write any more
    ├── ExchangeError             an exchange gave no candles; what it gave before is stored
    ├── ClosedError               the container was closed
    └── SettingsError             a setting, or the installation, cannot work

With the first three nothing was sent, or no row was touched.
A missing row is never an error: it is ``None``. Messages name the domain and the context, never a payload or a secret.
A program decides by the class and the attributes of `BacktestPersistError`, never by the message.
"""

import copy
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Self, cast

__all__ = (
    "BacktestPersistError",
    "ClosedError",
    "ErrorReason",
    "ExchangeError",
    "IndexConflictError",
    "InvalidKeyError",
    "InvalidPayloadError",
    "InvalidWhenError",
    "LeaseHeldError",
    "LeaseLostError",
    "SettingsError",
    "StoreUnavailableError",
    "WriteOutcomeUnknownError",
    "WriteRejectedError",
)


class ErrorReason(StrEnum):
    """Why a server or an exchange could not be used, or an index not be relied on."""

    TIMEOUT = "timeout"
    """The server did not answer within the deadline, or could not be reached in it."""
    CONNECTION = "connection"
    """The connection could not be opened, or broke."""
    SERVER_ERROR = "server error"
    """The server answered with an error."""
    NOT_PERMITTED = "not permitted"
    """The server does not permit this user to do this."""
    UNAUTHENTICATED = "unauthenticated"
    """The server refused user and password, or asked for them."""
    NO_SESSIONS = "no sessions"
    """The connection takes no sessions; nothing was sent."""
    BUSY = "busy"
    """The call waited for its turn for the whole deadline; nothing was sent."""
    CIRCUIT_OPEN = "circuit open"
    """Others found that the server does not answer while this call waited for its turn; nothing was sent."""
    UNSUPPORTED = "unsupported"
    """The server is a node of a Redis Cluster or a Sentinel, or the exchange has no candles of this kind."""
    EVENT_LOOP = "event loop"
    """The client that the container was given belongs to another event loop; nothing was sent."""
    DRIVER = "driver"
    """The driver failed with an error that is not about the server."""
    RATE_LIMIT = "rate limit"
    """The exchange was asked too often, and asks to wait."""
    RESTRICTED_LOCATION = "restricted location"
    """The exchange does not serve the country of this computer."""
    NARROW_INDEX = "narrow index"
    """A unique index covers only a part of the context, so that two contexts cannot both be stored."""
    CONFLICTING_INDEX = "conflicting index"
    """An index has the fields or the name of a needed one, but refuses, hides or deletes documents."""
    DUPLICATES = "duplicates"
    """Several documents have one context, so that the unique index cannot be built."""


class BacktestPersistError(Exception):
    """The root of every error raised by this package.

    Its data survives `pickle`, `copy.copy` and `copy`.
    """

    collection: str | None = None
    """The MongoDB collection that the call was about."""
    context: Mapping[str, Any] | None = None
    """The names (in snake_case) and values of the context that the call was about."""
    retryable: bool = False
    """Whether the same call may simply be made again: it can succeed then, and does no harm."""
    stored: int | None = None
    """How many documents of a bulk are known to be stored."""
    server: str | None = None
    """The kind of server, ``MongoDB`` or ``Redis``, if the error is about a connection."""
    host: str | None = None
    """The addresses of that server, separated by commas: ``host:port`` or the path of a socket."""
    setting: str | None = None
    """The name of the setting that the address comes from, or that cannot work."""
    reason: ErrorReason | None = None
    """Why a server or an exchange could not be used, or an index not be relied on."""

    def __init__(
        self,
        message: str = "",
        *,
        collection: str | None = None,
        context: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
        stored: int | None = None,
        server: str | None = None,
        host: str | None = None,
        setting: str | None = None,
        reason: ErrorReason | None = None,
    ) -> None:
        super().__init__(message)
        given = {
            "collection": collection,
            "context": None if context is None else dict(context),
            "retryable": retryable,
            "stored": stored,
            "server": server,
            "host": host,
            "setting": setting,
            "reason": reason,
        }
        self.__dict__.update({name: value for name, value in given.items() if value is not None})

    def __reduce__(self) -> Any:
        """Keep that a cause is not shown, which an exception forgets by itself."""
        kind, arguments, *state = cast("tuple[Any, ...]", super().__reduce__())
        return kind, arguments, {**(state[0] if state else {}), "__suppress_context__": self.__suppress_context__}

    def copy(self) -> Self:
        """Return an error of the same class with the same message, data and cause.

        Each of several callers that share a batch raises one: a traceback grows wherever its error is raised.
        """
        other = copy.copy(self)
        other.__cause__, other.__suppress_context__ = self.__cause__, self.__suppress_context__
        return other


class InvalidKeyError(BacktestPersistError):
    """A part of a context, a key, a candle window or a filter is unusable; nothing was changed."""


class InvalidPayloadError(BacktestPersistError):
    """A payload or a candle cannot be stored exactly as given (nothing was sent), or a document is damaged."""


class InvalidWhenError(BacktestPersistError):
    """A simulation time is missing, naive or not a number; nothing was sent."""


class WriteRejectedError(BacktestPersistError):
    """The server refused the write; the stored value is unchanged."""


class WriteOutcomeUnknownError(BacktestPersistError):
    """The write may have been applied; the next acknowledged write of the same context settles it.

    A read alone does not: what it sees may still be rolled back, or appear later. Writes are upserts, so making the
    same call again does no harm and is the way to settle it.
    """

    retryable = True


class StoreUnavailableError(BacktestPersistError):
    """A server gave no usable answer within its deadline; MongoDB has applied nothing (for Redis see `BaseMap`)."""

    retryable = True


class IndexConflictError(BacktestPersistError):
    """The unique index of a domain is missing, blocked or too narrow; the message says how to repair it."""

    indexes: tuple[str, ...] = ()
    """The names of the indexes that stand in the way."""

    def __init__(self, message: str = "", *, indexes: tuple[str, ...] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.indexes = indexes

    @property
    def narrow(self) -> bool:
        """Whether a unique index of an older release is narrower than the context; `migrate` drops it."""
        return self.reason is ErrorReason.NARROW_INDEX


class _LeaseError(BacktestPersistError):
    """An error that names the process which has a lease."""

    host: str | None = None
    """The host of that process."""
    pid: int | None = None
    """Its process id."""
    since: datetime | None = None
    """The time at which it took the lease, by the clock of the server, in UTC."""

    def __init__(
        self, message: str = "", *, pid: int | None = None, since: datetime | None = None, **data: Any
    ) -> None:
        super().__init__(message, **data)
        self.pid, self.since = pid, since


class LeaseHeldError(_LeaseError):
    """Another writer holds the lease of this context; nothing was changed. The lease can be asked for again.

    Host, pid and time are those of the holder.
    """

    retryable = True


class LeaseLostError(_LeaseError):
    """The lease is not held any more, so that nothing can be committed; nothing of this commit is stored.

    Host, pid and time are those of the process that has taken it since, if there is one.
    """


class ExchangeError(BacktestPersistError):
    """An exchange refused a request for candles, or did not answer for long; what it gave before is stored.

    Where it is `retryable`, running the same fill again goes on from there.
    """

    exchange: str | None = None
    """The id of the exchange, such as ``binance``."""
    retry_after: float | None = None
    """The seconds for which the exchange asks to wait, if it does."""

    def __init__(
        self, message: str = "", *, exchange: str | None = None, retry_after: float | None = None, **data: Any
    ) -> None:
        super().__init__(message, **data)
        self.exchange, self.retry_after = exchange, retry_after


class ClosedError(BacktestPersistError):
    """The container was closed; open another one."""


class SettingsError(BacktestPersistError):
    """A setting, or the installation, cannot work; the message names it."""
