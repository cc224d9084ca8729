"""Translation: the one place where errors of the drivers become ours.

`MONGO_RULES` and `REDIS_REASONS` are the tables; the first row that fits decides. What a driver says in words is read
in two places only, as it carries the fact nowhere else: `endpoint`, for advice, and `workarounds.is_sessionless`.

An error about a server that cannot be reached, or is silent, has no cause: the driver's adds hundreds of lines to a
traceback, and no fact.
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
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from backtest_persist.connections.endpoint import Endpoint, Outage, connection_advice, start_advice, unsupported
from backtest_persist.connections.redis_connection import UnsupportedServerError
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
    "SILENCE",
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
        raise ours from (None if _quotes_data(error) or _is_silence(error) else error)


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
    """With ``{kind}``, the name of the driver's class, ``{problem}`` and ``{said}``, what the server or the driver
    says, and ``{advice}``."""
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


def _is_about_dns(error: BaseException) -> bool:
    """Whether a name server did not answer, or does not know the host of a ``mongodb+srv`` URI."""
    return isinstance(error, ConfigurationError) and any(
        type(cause).__module__.startswith("dns.") for cause in _causes(error)
    )


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
    Rule(ConfigurationError, Access.READ, StoreUnavailableError, "{problem}. {advice}", _is_about_dns),
    Rule(
        ConfigurationError,
        Access.WRITE,
        StoreUnavailableError,
        "{problem}. Nothing was applied. {advice}",
        _is_about_dns,
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
    endpoint = endpoint or _SOMEWHERE
    text = rule.message.format_map(_Facts(error, reason, endpoint))
    ours = rule.raised(
        f"{operation}: {text.rstrip('. ')}.",
        collection=operation.collection,
        context=None if operation.context is None else operation.context.parts(),
        retryable=False if reason in _UNUSABLE_BY_THIS_USER else None,
        stored=_count_stored(error),
        reason=reason,
    )
    if reason is not None or isinstance(ours, SettingsError):
        _locate(ours, endpoint)
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

    def __init__(self, error: Exception, reason: ErrorReason | None, endpoint: Endpoint) -> None:
        self._error = error
        self._reason = reason
        self._endpoint = endpoint

    def __missing__(self, name: str) -> str:
        error: Any = self._error
        if name == "kind":
            return type(error).__name__
        if name == "problem":
            return self._problem()
        if name == "advice":
            return self._advice()
        if name == "said":
            if isinstance(error, OperationFailure):
                return str((error.details or {}).get("errmsg", "")).partition("\n")[0][:200]
            return _first_line(error)
        failures = error.details["writeErrors"]
        if name == "refused":
            return str(len(failures))
        return str(sorted({int(failed.get("code", 0)) for failed in failures}))  # codes

    def _problem(self) -> str:
        outage = self._outage()
        if outage is None:
            return _describe(self._error)
        hint = connection_advice(outage.problem, self._endpoint)
        return f"{outage.problem}; {hint}" if hint else outage.problem

    def _advice(self) -> str:
        if self._reason in _UNUSABLE_BY_THIS_USER:
            return ""
        if _is_about_dns(self._error):
            return _dns_advice(self._error, self._endpoint)
        outage = self._outage()
        if outage is None:
            return start_advice(str(self._error), self._endpoint, was_known=True)
        if connection_advice(outage.problem, self._endpoint):
            return ""
        if outage.has_members:
            return "Its replica set elects one within seconds; try again"
        return start_advice(outage.problem, self._endpoint, was_known=outage.was_known)

    def _outage(self) -> Outage | None:
        if not isinstance(self._error, TimeoutError | ServerSelectionTimeoutError):
            return None
        outage = self._endpoint.outage()
        if outage is None and isinstance(self._error, ServerSelectionTimeoutError):
            said = _first_line(self._error) or "none was found in time"
            return Outage(f"no primary answers: {said}", self._endpoint.was_known(), has_members=False)
        return outage


def _dns_advice(error: Exception, endpoint: Endpoint) -> str:
    if any(type(cause).__name__ in ("NXDOMAIN", "NoAnswer") for cause in _causes(error)):
        setting = endpoint.setting or "the address of the client"
        return f"Check the host in {setting}, which needs an SRV record (mongodb:// does not), and the name server"
    return "Check the name server and try again"


def _count_stored(error: Exception) -> int | None:
    if not isinstance(error, BulkWriteError) or _lacks_write_concern(error):
        return None
    details: Mapping[str, Any] = error.details or {}
    counts = [details[name] for name in ("nInserted", "nMatched", "nUpserted") if name in details]
    return sum(counts) if counts else None


def _mongo_reason(error: Exception) -> ErrorReason | None:
    if isinstance(error, ConfigurationError):
        if _is_about_dns(error):
            return ErrorReason.CONNECTION
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


def _is_silence(error: Exception) -> bool:
    return isinstance(error, TimeoutError | ServerSelectionTimeoutError)


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer within the deadline"
    if isinstance(error, OperationFailure):
        name = (error.details or {}).get("codeName", type(error).__name__)
        hint = _CODES[error.code][1] if error.code in _CODES else ""
        return f"the server answered {name} (code {error.code}{hint})"
    if isinstance(error, NotPrimaryError):
        return f"no primary answers: {_first_line(error)}"
    if _is_about_dns(error):
        return f"no name server has resolved the host: {_first_line(error)}"
    if _quotes_data(error):
        return f"the driver failed with {type(error).__name__}"
    line = _first_line(error)
    hint = connection_advice(line, _IN_USE)
    return f"{type(error).__name__}: {line}" + (f"; {hint}" if hint else "")


_IN_USE = Endpoint("MongoDB", None, lambda: None, was_known=lambda: True)
"""A server that was selected has answered: it is no question of TLS that it closes a connection."""

_TIMEOUTS = re.compile(r" \(configured timeouts: [^)]*\)")


def _first_line(error: Exception) -> str:
    """The first line of what the driver says, shortened; what it says after that may quote a document or a topology."""
    line = _TIMEOUTS.sub("", next(iter(str(error).splitlines()), ""))
    return re.split(", full error: |, Timeout: [0-9.]+s, Topology Description", line)[0][:200].rstrip(".")


@contextmanager
def redis_errors(operation: str, *, endpoint: Endpoint | None = None) -> Generator[None]:
    """Turn driver errors into `StoreUnavailableError`; `operation` opens the message."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        ours = redis_error(operation, error, endpoint=endpoint)
        raise ours from (None if ours.reason in SILENCE else error)


SILENCE = frozenset({ErrorReason.CONNECTION, ErrorReason.TIMEOUT, ErrorReason.UNSUPPORTED})
"""Reasons of Redis whose cause says nothing more."""

REDIS_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], ErrorReason], ...] = (
    (NoPermissionError, ErrorReason.NOT_PERMITTED),
    (MasterDownError, ErrorReason.SERVER_ERROR),
    (
        (UnsupportedServerError, AskError, ClusterCrossSlotError, ClusterDownError, TryAgainError),
        ErrorReason.UNSUPPORTED,
    ),
    ((AuthenticationError, AuthorizationError), ErrorReason.UNAUTHENTICATED),
    ((ResponseError, BusyLoadingError), ErrorReason.SERVER_ERROR),
    ((TimeoutError, RedisTimeoutError), ErrorReason.TIMEOUT),
    (BaseException, ErrorReason.CONNECTION),
)
"""Every error of this driver is a `StoreUnavailableError`, for such a reason."""


def redis_error(operation: str, error: Exception, *, endpoint: Endpoint | None = None) -> StoreUnavailableError:
    """Translate an error of the driver; `operation` opens the message."""
    endpoint = endpoint or Endpoint("Redis", None, lambda: None)
    said = _first_line(error) if str(error) else "no answer within CC_REDIS_TIMEOUT_MS"
    reason = _redis_reason(error)
    hint = connection_advice(said, endpoint)
    text = f"{type(error).__name__}: {said}" + (f"; {hint}" if hint else "")
    if reason is ErrorReason.UNSUPPORTED:
        text = unsupported(error.mode if isinstance(error, UnsupportedServerError) else "cluster", endpoint)
    elif reason is ErrorReason.CONNECTION and not hint and _CANNOT_CONNECT.search(said):
        text += f". {start_advice(said, endpoint, was_known=endpoint.was_known())}"
    ours = StoreUnavailableError(
        f"{operation}: {text}.",
        retryable=reason not in (*_UNUSABLE_BY_THIS_USER, ErrorReason.UNSUPPORTED),
        reason=reason,
    )
    _locate(ours, endpoint)
    return ours


_CANNOT_CONNECT = re.compile(r"^Error .* connecting to |^\[Errno|^Multiple exceptions")


def _redis_reason(error: Exception) -> ErrorReason:
    """The driver raises a `ConnectionError` from what the server answers while it connects: the answer decides."""
    causes = tuple(_causes(error))
    answers = (cause for cause in causes if isinstance(cause, _REDIS_ANSWERS))
    decisive = next(answers, error)
    return next(reason for errors, reason in REDIS_REASONS if isinstance(decisive, errors))


_REDIS_ANSWERS = (UnsupportedServerError, ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
