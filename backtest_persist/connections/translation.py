"""Translation: the one place where errors of the drivers become ours."""

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    InvalidURI,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
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
    "Operation",
    "OperationContext",
    "is_forbidden",
    "is_sessionless",
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


Described = Operation | str | Callable[[], str]
"""An operation, or the text that opens the message of its errors."""


def mongo_errors(operation: Described, *, write: bool = False) -> AbstractContextManager[None]:
    """Turn driver errors into ours, which name the operation and carry its collection and context."""
    return _MongoErrors(operation, write)


def timed_out(operation: Described, *, write: bool = False) -> BacktestPersistError:
    """Return the error of an operation that has not ended within its deadline."""
    return _translated(TimeoutError(), operation, write)


class _MongoErrors(AbstractContextManager[None]):
    """A class, as this is entered around every command: a generator would cost several times as much."""

    __slots__ = ("_operation", "_write")

    def __init__(self, operation: Described, write: bool) -> None:
        self._operation = operation
        self._write = write

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, BacktestPersistError):
            return
        # the driver has bugs, too; a write that met one may have been applied
        raise _translated(error, self._operation, self._write) from (None if _quotes_data(error) else error)


def _translated(error: Exception, described: Described, write: bool) -> BacktestPersistError:
    operation = described
    if not isinstance(operation, Operation):
        operation = Operation(operation if isinstance(operation, str) else operation(), write=write)
    ours = _translate(error, str(operation), write=operation.write)
    ours.collection = operation.collection
    ours.context = None if operation.context is None else operation.context.parts()
    ours.server, ours.reason = "MongoDB", _mongo_reason(error)
    return ours


def _mongo_reason(error: Exception) -> ErrorReason | None:
    if is_sessionless(error):
        return ErrorReason.NO_SESSIONS
    if isinstance(error, TimeoutError | NetworkTimeout | ServerSelectionTimeoutError | WTimeoutError):
        return ErrorReason.TIMEOUT
    if isinstance(error, OperationFailure):
        return _REASONS.get(error.code or 0, ErrorReason.SERVER_ERROR)
    if isinstance(error, BSONError | DocumentTooLarge | ConfigurationError | InvalidURI | InvalidOperation):
        return None
    return ErrorReason.CONNECTION if isinstance(error, PyMongoError) else ErrorReason.DRIVER


_REASONS = {13: ErrorReason.NOT_PERMITTED, 18: ErrorReason.UNAUTHENTICATED, 50: ErrorReason.TIMEOUT}

# BadValue, FailedToParse, TypeMismatch and their like; without a name (51091) an error is of the query's parser as well
_BAD_QUERY_CODES = {2, 9, 14, 15, 16, 17, 22, 27, 28, 52, 53, 55, 56, 57, 72, 73, 115, 139, 168, 224, 241, 303}
_STATE_CODES = {10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436}


def _quotes_data(error: Exception) -> bool:
    if is_sessionless(error):
        return False
    return not isinstance(error, PyMongoError) or isinstance(
        error, OperationFailure | DocumentTooLarge | ConfigurationError
    )


def _translate(error: Exception, operation: str, *, write: bool) -> BacktestPersistError:
    if isinstance(error, BSONError) and not write:
        problem = f"a stored document cannot be decoded ({_first_line(error)})"
        return InvalidPayloadError(f"{operation}: {problem}. Repair or remove it.")
    if isinstance(error, BSONError | DocumentTooLarge | OverflowError):
        return InvalidPayloadError(f"{operation}: MongoDB cannot store this value ({type(error).__name__}).")
    if isinstance(error, InvalidOperation) and not write:
        return ClosedError(f"{operation}: the client was closed; open another container.")
    if is_sessionless(error):
        return StoreUnavailableError(f"{operation}: {_first_line(error)}. Nothing was applied; try again.")
    if isinstance(error, ConfigurationError | InvalidURI):
        return SettingsError(f"{operation}: the connection string does not fit ({type(error).__name__}).")
    what = _describe(error)
    if not write and isinstance(error, OperationFailure) and _is_bad_query(error.code or 0):
        reason = str((error.details or {}).get("errmsg", "")).partition("\n")[0][:200]
        return InvalidKeyError(f"{operation}: {what}; MongoDB does not understand the filter or the sort: {reason}")
    if not write and isinstance(error, TypeError | ValueError):
        return InvalidKeyError(f"{operation}: the driver cannot send this filter or sort ({type(error).__name__}).")
    if not write or isinstance(error, ServerSelectionTimeoutError):
        return StoreUnavailableError(f"{operation}: {what}. Nothing was applied; check the server and try again.")
    if isinstance(error, BulkWriteError):
        details: Mapping[str, Any] = error.details or {}
        if not details.get("writeErrors"):
            return WriteOutcomeUnknownError(f"{operation}: the write concern was not met; read to see what is stored.")
        codes = sorted({int(failed.get("code", 0)) for failed in details["writeErrors"]})
        return WriteRejectedError(
            f"{operation}: {len(details['writeErrors'])} of the writes were refused (codes {codes}); "
            "the others are stored, and writing them again is safe."
        )
    if (
        isinstance(error, OperationFailure)
        and not isinstance(error, WriteConcernError)
        and not (error.timeout or error.has_error_label("RetryableWriteError"))
    ):
        return WriteRejectedError(f"{operation}: {what}. The stored value is unchanged.")
    return WriteOutcomeUnknownError(
        f"{operation}: {what}. It may have been applied; the next acknowledged write settles it."
    )


def _is_bad_query(code: int) -> bool:
    return code in _BAD_QUERY_CODES or (code > 10_000 and code not in _STATE_CODES)


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer within the deadline"
    if isinstance(error, OperationFailure):
        name = (error.details or {}).get("codeName", type(error).__name__)
        hint = {
            13: "; grant the user readWrite on this database",
            18: "; check user and password",
            50: "; ask for less at once, or raise CC_MONGO_TIMEOUT_MS",
        }
        return f"the server answered {name} (code {error.code}{hint.get(error.code or 0, '')})"
    if _quotes_data(error):
        return f"the driver failed with {type(error).__name__}"
    return _first_line(error)


_ADVICE = {
    r"CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)": "connect under a name that is in its certificate",
    r"CERTIFICATE_VERIFY_FAILED": "name the CA that signed its certificate (tlsCAFile=, ssl_ca_certs= for Redis)",
    r"Authentication failed": "check user and password",
    r"[Cc]onnection closed": "a server that wants TLS needs tls=true in the URI, rediss:// for Redis",
}


def _first_line(error: Exception) -> str:
    """What the driver says, shortened, and what to do about TLS and passwords."""
    line = next(iter(str(error).splitlines()), "").partition(", full error: ")[0][:200]
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, line)), None)
    return f"{type(error).__name__}: {line.rstrip('.')}" + (f"; {advice}" if advice else "")


@contextmanager
def redis_errors(operation: str) -> Generator[None]:
    """Turn driver errors into `StoreUnavailableError`; `operation` opens the message."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise redis_error(operation, error) from error


def redis_error(operation: str, error: Exception) -> StoreUnavailableError:
    """Translate an error of the driver; `operation` opens the message."""
    what = _first_line(error) if str(error) else f"{type(error).__name__}: no answer within CC_REDIS_TIMEOUT_MS"
    return StoreUnavailableError(f"{operation}: {what}.", server="Redis", reason=_redis_reason(error))


def _redis_reason(error: BaseException) -> ErrorReason:
    """The driver wraps what the server answers while it connects, so causes are looked at, too."""
    for cause in _causes(error):
        if isinstance(cause, NoPermissionError):
            return ErrorReason.NOT_PERMITTED
        if isinstance(cause, AuthenticationError | AuthorizationError):
            return ErrorReason.UNAUTHENTICATED
        if isinstance(cause, ResponseError | BusyLoadingError):
            return ErrorReason.SERVER_ERROR
    return ErrorReason.TIMEOUT if isinstance(error, TimeoutError | RedisTimeoutError) else ErrorReason.CONNECTION


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def is_sessionless(error: BaseException | None) -> bool:
    """Whether an error says that a connection takes no sessions; nothing was sent."""
    if isinstance(error, BacktestPersistError):
        return error.reason is ErrorReason.NO_SESSIONS
    return isinstance(error, ConfigurationError) and str(error).startswith("Sessions are not supported")


def is_forbidden(error: BacktestPersistError) -> bool:
    """Whether Redis is there, and does not let this user send this command."""
    return error.reason is ErrorReason.NOT_PERMITTED
