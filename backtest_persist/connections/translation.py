"""Translation: the one place where errors of the drivers become ours.

`MONGO_RULES` and `REDIS_REASONS` are the tables; the first row that fits decides. What a driver says in words is read
in two places only, as it carries the fact nowhere else: `_ADVICE`, for what to do about TLS and passwords, and
`workarounds.is_sessionless`.
"""

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from bson.errors import BSONError, InvalidBSON
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from backtest_persist.connections.workarounds import is_sessionless
from backtest_persist.errors import (
    BacktestPersistError,
    ClosedError,
    ErrorReason,
    InvalidKeyError,
    InvalidPayloadError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = (
    "MONGO_RULES",
    "REDIS_REASONS",
    "Access",
    "Endpoint",
    "Operation",
    "OperationContext",
    "Rule",
    "mongo_errors",
    "redis_error",
    "redis_errors",
    "timed_out",
)


class OperationContext(Protocol):
    """The context of one document, as errors show it."""

    def describe(self) -> str:
        """Return it for a message."""
        ...

    def parts(self) -> dict[str, Any]:
        """Return its names, in snake_case, and values."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on MongoDB, as errors describe it.

    One is made for every command, and its text only for an error.
    """

    verb: str
    collection: str | None = None
    context: OperationContext | None = None
    write: bool = False

    def __str__(self) -> str:
        verb = self.verb[:1].upper() + self.verb[1:]
        if self.collection is None:
            return verb
        described = "" if self.context is None else f" ({self.context.describe()})"
        return f"{verb} in {self.collection}{described}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads, as errors name it; never with a user or a password."""

    server: str
    setting: str | None
    """The setting that the address comes from; None for a client that the container was given."""
    hosts: Callable[[], str | None]


def mongo_errors(operation: Operation, *, endpoint: Endpoint | None = None) -> AbstractContextManager[None]:
    """Turn driver errors into ours, which name the operation and carry its collection and context."""
    return _MongoErrors(operation, endpoint)


def timed_out(operation: Operation, *, endpoint: Endpoint | None = None) -> BacktestPersistError:
    """Return the error of an operation that has not ended within its deadline."""
    return _translated(TimeoutError(), operation, endpoint)


class _MongoErrors(AbstractContextManager[None]):
    """A class, as this is entered around every command: a generator would cost several times as much."""

    __slots__ = ("_endpoint", "_operation")

    def __init__(self, operation: Operation, endpoint: Endpoint | None) -> None:
        self._operation = operation
        self._endpoint = endpoint

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, BacktestPersistError):
            return
        ours = _translated(error, self._operation, self._endpoint)
        raise ours from (None if _quotes_data(error) else error)


class Access(Enum):
    """Whether an operation reads or writes."""

    READ = "read"
    WRITE = "write"
    ANY = "any"


class Rule(NamedTuple):
    """One row of the table: an error of the driver, met by such an operation, becomes one of ours."""

    errors: type[Exception] | tuple[type[Exception], ...]
    access: Access
    raised: type[BacktestPersistError]
    message: str
    """With ``{kind}``, the name of the driver's class, ``{said}``, what the server or the driver says, and
    ``{advice}``."""
    condition: Callable[[Any], bool] | None = None
    """A further condition on the error."""


# BadValue, FailedToParse, TypeMismatch and their like; without a name (51091) an error is of the query's parser as well
_BAD_QUERY_CODES = {2, 9, 14, 15, 16, 17, 22, 27, 28, 52, 53, 55, 56, 57, 72, 73, 115, 139, 168, 224, 241, 303}
_STATE_CODES = {10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436}


def _is_bad_query(error: OperationFailure) -> bool:
    code = error.code or 0
    return code in _BAD_QUERY_CODES or (code > 10_000 and code not in _STATE_CODES)


def _is_refusal(error: OperationFailure) -> bool:
    """Whether the server has refused a write: it has neither begun it nor applied it without a majority."""
    return not (isinstance(error, WriteConcernError) or error.timeout or error.has_error_label("RetryableWriteError"))


def _lacks_write_concern(error: BulkWriteError) -> bool:
    """Whether what was applied of a bulk may be rolled back."""
    details: Mapping[str, Any] = error.details or {}
    return bool(details.get("writeConcernErrors")) or not details.get("writeErrors")


MONGO_RULES: tuple[Rule, ...] = (
    Rule(
        InvalidBSON,
        Access.READ,
        InvalidPayloadError,
        "a stored document cannot be decoded ({kind}: {said}). Repair or remove it",
    ),
    Rule(
        (BSONError, OverflowError),
        Access.READ,
        InvalidKeyError,
        "the driver cannot send this filter or sort ({kind})",
    ),
    Rule((BSONError, OverflowError), Access.WRITE, InvalidPayloadError, "MongoDB cannot store this value ({kind})"),
    Rule(InvalidOperation, Access.READ, ClosedError, "the client was closed; open another container"),
    Rule(
        ConfigurationError,
        Access.READ,
        StoreUnavailableError,
        "{kind}: {said}. Try again",
        is_sessionless,
    ),
    Rule(
        ConfigurationError,
        Access.WRITE,
        StoreUnavailableError,
        "{kind}: {said}. Nothing was applied; try again",
        is_sessionless,
    ),
    Rule(ConfigurationError, Access.ANY, SettingsError, "the connection string does not fit ({kind})"),
    Rule(
        OperationFailure,
        Access.READ,
        InvalidKeyError,
        "{problem}; MongoDB does not understand the filter or the sort: {said}",
        _is_bad_query,
    ),
    Rule(
        (TypeError, ValueError),
        Access.READ,
        InvalidKeyError,
        "the driver cannot send this filter or sort ({kind})",
    ),
    Rule(Exception, Access.READ, StoreUnavailableError, "{problem}. {advice}"),
    Rule(
        ServerSelectionTimeoutError,
        Access.WRITE,
        StoreUnavailableError,
        "{problem}. Nothing was applied. {advice}",
    ),
    Rule(
        BulkWriteError,
        Access.WRITE,
        WriteOutcomeUnknownError,
        "the write concern was not met, so that what was applied may be rolled back; write it again",
        _lacks_write_concern,
    ),
    Rule(
        BulkWriteError,
        Access.WRITE,
        WriteRejectedError,
        "{refused} of the writes were refused (codes {codes}); the others are stored, and writing them again is safe",
    ),
    Rule(OperationFailure, Access.WRITE, WriteRejectedError, "{problem}. The stored value is unchanged", _is_refusal),
    # the driver has bugs, too; a write that met one may have been applied
    Rule(
        Exception,
        Access.WRITE,
        WriteOutcomeUnknownError,
        "{problem}. It may have been applied; the next acknowledged write settles it",
    ),
)

_CODES: dict[int, tuple[ErrorReason, str]] = {
    13: (ErrorReason.NOT_PERMITTED, "; grant the user readWrite on this database"),
    18: (ErrorReason.UNAUTHENTICATED, "; check user and password"),
    50: (ErrorReason.TIMEOUT, "; ask for less at once, or raise CC_MONGO_TIMEOUT_MS"),
}
"""Codes of the server that say more than that it answered with an error, and what to do."""

_ABOUT_A_SERVER = (StoreUnavailableError, WriteOutcomeUnknownError, WriteRejectedError)
_UNUSABLE_BY_THIS_USER = (ErrorReason.NOT_PERMITTED, ErrorReason.UNAUTHENTICATED)


def _translated(error: Exception, operation: Operation, endpoint: Endpoint | None) -> BacktestPersistError:
    access = Access.WRITE if operation.write else Access.READ
    rule = next(rule for rule in MONGO_RULES if _fits(rule, error, access))
    reason = _mongo_reason(error) if issubclass(rule.raised, _ABOUT_A_SERVER) else None
    text = rule.message.format_map(_Facts(error, reason))
    ours = rule.raised(
        f"{operation}: {text.rstrip('. ')}.",
        collection=operation.collection,
        context=None if operation.context is None else operation.context.parts(),
        retryable=False if reason in _UNUSABLE_BY_THIS_USER else None,
        stored=_count_stored(error),
        reason=reason,
    )
    if reason is not None or isinstance(ours, SettingsError):
        _locate(ours, endpoint or _SOMEWHERE)
    return ours


def _fits(rule: Rule, error: Exception, access: Access) -> bool:
    return (
        rule.access in (access, Access.ANY)
        and isinstance(error, rule.errors)
        and (rule.condition is None or rule.condition(error))
    )


_SOMEWHERE = Endpoint("MongoDB", None, lambda: None)


def _locate(error: BacktestPersistError, endpoint: Endpoint) -> None:
    error.server, error.host, error.setting = endpoint.server, endpoint.hosts(), endpoint.setting


class _Facts(dict[str, Any]):
    """The facts that a message may name, each computed when it does."""

    def __init__(self, error: Exception, reason: ErrorReason | None) -> None:
        self._error = error
        self._reason = reason

    def __missing__(self, name: str) -> str:
        error: Any = self._error
        if name == "kind":
            return type(error).__name__
        if name == "problem":
            return _describe(error)
        if name == "advice":
            return "" if self._reason in _UNUSABLE_BY_THIS_USER else "Check the server and try again"
        if name == "said":
            if isinstance(error, OperationFailure):
                return str((error.details or {}).get("errmsg", "")).partition("\n")[0][:200]
            return _first_line(error)
        failures = error.details["writeErrors"]
        if name == "refused":
            return str(len(failures))
        return str(sorted({int(failed.get("code", 0)) for failed in failures}))  # codes


def _count_stored(error: Exception) -> int | None:
    if not isinstance(error, BulkWriteError) or _lacks_write_concern(error):
        return None
    details: Mapping[str, Any] = error.details or {}
    counts = [details[name] for name in ("nInserted", "nMatched", "nUpserted") if name in details]
    return sum(counts) if counts else None


def _mongo_reason(error: Exception) -> ErrorReason | None:
    if isinstance(error, ConfigurationError):
        return ErrorReason.NO_SESSIONS if is_sessionless(error) else None
    if isinstance(error, TimeoutError | NetworkTimeout | ServerSelectionTimeoutError | WaitQueueTimeoutError):
        return ErrorReason.TIMEOUT
    if isinstance(error, OperationFailure):
        default = ErrorReason.TIMEOUT if isinstance(error, WTimeoutError) else ErrorReason.SERVER_ERROR
        return _CODES.get(error.code or 0, (default, ""))[0]
    if isinstance(error, InvalidOperation):
        return None
    return ErrorReason.CONNECTION if isinstance(error, PyMongoError | OSError) else ErrorReason.DRIVER


def _quotes_data(error: Exception) -> bool:
    """Whether the message of an error, or of its cause, may quote a document or the connection string."""
    if is_sessionless(error):
        return False
    return not isinstance(error, PyMongoError) or isinstance(
        error, OperationFailure | DocumentTooLarge | ConfigurationError
    )


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer within the deadline"
    if isinstance(error, OperationFailure):
        name = (error.details or {}).get("codeName", type(error).__name__)
        hint = _CODES[error.code][1] if error.code in _CODES else ""
        return f"the server answered {name} (code {error.code}{hint})"
    if _quotes_data(error):
        return f"the driver failed with {type(error).__name__}"
    return f"{type(error).__name__}: {_first_line(error)}"


_ADVICE = {
    r"CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)": "connect under a name that is in its certificate",
    r"CERTIFICATE_VERIFY_FAILED": "name the CA that signed its certificate (tlsCAFile=, ssl_ca_certs= for Redis)",
    r"Authentication failed": "check user and password",
    r"[Cc]onnection closed": "a server that wants TLS needs tls=true in the URI, rediss:// for Redis",
}


def _first_line(error: Exception) -> str:
    """The first line of what the driver says, shortened, and what to do about TLS and passwords."""
    line = next(iter(str(error).splitlines()), "").partition(", full error: ")[0][:200]
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, line)), None)
    return line.rstrip(".") + (f"; {advice}" if advice else "")


@contextmanager
def redis_errors(operation: str, *, endpoint: Endpoint | None = None) -> Generator[None]:
    """Turn driver errors into `StoreUnavailableError`; `operation` opens the message."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise redis_error(operation, error, endpoint=endpoint) from error


REDIS_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], ErrorReason], ...] = (
    (NoPermissionError, ErrorReason.NOT_PERMITTED),
    ((AuthenticationError, AuthorizationError), ErrorReason.UNAUTHENTICATED),
    ((ResponseError, BusyLoadingError), ErrorReason.SERVER_ERROR),
    ((TimeoutError, RedisTimeoutError), ErrorReason.TIMEOUT),
    (BaseException, ErrorReason.CONNECTION),
)
"""Every error of this driver is a `StoreUnavailableError`, for such a reason."""


def redis_error(operation: str, error: Exception, *, endpoint: Endpoint | None = None) -> StoreUnavailableError:
    """Translate an error of the driver; `operation` opens the message."""
    said = _first_line(error) if str(error) else "no answer within CC_REDIS_TIMEOUT_MS"
    reason = _redis_reason(error)
    ours = StoreUnavailableError(
        f"{operation}: {type(error).__name__}: {said}.",
        retryable=reason not in _UNUSABLE_BY_THIS_USER,
        reason=reason,
    )
    _locate(ours, endpoint or Endpoint("Redis", None, lambda: None))
    return ours


def _redis_reason(error: Exception) -> ErrorReason:
    """The driver raises a `ConnectionError` from what the server answers while it connects: the answer decides."""
    causes = tuple(_causes(error))
    answers = (cause for cause in causes if isinstance(cause, _REDIS_ANSWERS))
    decisive = next(answers, error)
    return next(reason for errors, reason in REDIS_REASONS if isinstance(decisive, errors))


_REDIS_ANSWERS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
