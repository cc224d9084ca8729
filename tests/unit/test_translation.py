"""Every row of the tables that make errors of ours from those of the drivers, without a server."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
from bson.errors import InvalidBSON, InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ProtocolError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from redis import exceptions as redis

from backtest_persist.connections.endpoint import Endpoint, Outage
from backtest_persist.connections.redis_connection import UnsupportedServerError
from backtest_persist.connections.translation import (
    MONGO_RULES,
    REDIS_REASONS,
    SILENCE,
    Access,
    Operation,
    mongo_errors,
    redis_error,
    redis_errors,
    timed_out,
)
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

SECRET = "hunter2"


class Symbol:
    """The context of the operations here."""

    def describe(self) -> str:
        return "symbol='BTCUSDT'"

    def parts(self) -> dict[str, Any]:
        return {"symbol": "BTCUSDT"}


READ = Operation("find", "signal-items", Symbol())
WRITE = Operation("write", "signal-items", Symbol(), write=True)


def failure(
    code: int, *labels: str, kind: type[OperationFailure] = OperationFailure, name: str = "Name"
) -> OperationFailure:
    details = {"ok": 0, "code": code, "codeName": name, "errmsg": f"reason\n{SECRET}", "errorLabels": list(labels)}
    return kind(f"reason, full error: {SECRET}", code, details)


def bulk(**details: Any) -> BulkWriteError:
    return BulkWriteError({"writeErrors": [], "writeConcernErrors": [], **details})


SESSIONLESS = ConfigurationError("Sessions are not supported by this MongoDB deployment")


@dataclass(frozen=True)
class Case:
    """A driver's error, and what it becomes."""

    error: Exception
    raised: type[BacktestPersistError]
    reason: ErrorReason | None
    message: str
    """A part of it."""
    rule: int
    """The row of the table."""
    stored: int | None = None


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def dns_error(kind: str) -> Exception:
    """An error of the package that the driver asks name servers by."""
    return type(kind, (Exception,), {"__module__": "dns.resolver"})(SECRET)


NO_SERVER = (
    "localhost:27017: [Errno 111] refused (configured timeouts: socketTimeoutMS: 20.0ms, connectTimeoutMS: 20.0ms), "
    f"Timeout: 0.9s, Topology Description: <TopologyDescription id: 1, topology_type: Single, {SECRET}"
)
DEADLINE, BUSY_POOL = "no answer within the deadline", "WaitQueueTimeoutError: all in use"
READS: dict[str, Case] = {
    "a damaged document": Case(
        InvalidBSON("bad eoo"), InvalidPayloadError, None, "cannot be decoded (InvalidBSON: bad eoo). Repair", 0
    ),
    "a filter that is no BSON": Case(InvalidDocument(SECRET), InvalidKeyError, None, "this filter or sort", 1),
    "a filter of 17 MB": Case(DocumentTooLarge(SECRET), InvalidKeyError, None, "this filter or sort", 1),
    "an int beyond 64 bits": Case(OverflowError(SECRET), InvalidKeyError, None, "this filter or sort", 1),
    "a closed client": Case(
        InvalidOperation("Cannot use MongoClient after close"), ClosedError, None, "the client was closed", 3
    ),
    "no sessions": Case(SESSIONLESS, StoreUnavailableError, ErrorReason.NO_SESSIONS, "deployment. Try again", 4),
    "a bad option": Case(ConfigurationError(SECRET), SettingsError, None, "does not fit (ConfigurationError)", 8),
    "a bad URI": Case(InvalidURI(SECRET), SettingsError, None, "does not fit (InvalidURI)", 8),
    **{
        f"a filter that the server does not know: {code}": Case(
            failure(code), InvalidKeyError, None, "the filter or the sort: reason", 9
        )
        for code in (2, 9, 14, 139, 168, 16410, 51091)
    },
    "an argument of another type": Case(TypeError(SECRET), InvalidKeyError, None, "this filter or sort (TypeErr", 10),
    "an argument of another value": Case(ValueError(SECRET), InvalidKeyError, None, "this filter or sort", 10),
    **{
        f"a name server: {kind}": Case(
            raised_from(ConfigurationError(f"{kind} _mongodb._tcp.h."), dns_error(kind)),
            StoreUnavailableError,
            ErrorReason.CONNECTION,
            f"no name server has resolved the host: {kind} _mongodb._tcp.h. {advice}",
            6,
        )
        for kind, advice in (("NXDOMAIN", "Check the host in the address"), ("NoNameservers", "Check the name server"))
    },
    "no server": Case(
        ServerSelectionTimeoutError(NO_SERVER),
        StoreUnavailableError,
        ErrorReason.TIMEOUT,
        "no primary answers: localhost:27017: [Errno 111] refused. Start it, or correct the address of the client",
        11,
    ),
    "silence": Case(TimeoutError(), StoreUnavailableError, ErrorReason.TIMEOUT, DEADLINE, 11),
    "silence of the socket": Case(
        NetworkTimeout("timed out"), StoreUnavailableError, ErrorReason.TIMEOUT, "timed out", 11
    ),
    "a pool in use": Case(
        WaitQueueTimeoutError("all in use"), StoreUnavailableError, ErrorReason.TIMEOUT, BUSY_POOL, 11
    ),
    "a broken connection": Case(AutoReconnect("reset"), StoreUnavailableError, ErrorReason.CONNECTION, "reset", 11),
    "a refused connection": Case(
        ConnectionFailure("refused"), StoreUnavailableError, ErrorReason.CONNECTION, "refused", 11
    ),
    "a socket": Case(OSError(SECRET), StoreUnavailableError, ErrorReason.CONNECTION, "failed with OSError", 11),
    "a step-down": Case(
        NotPrimaryError("not primary"), StoreUnavailableError, ErrorReason.CONNECTION, "no primary answers: not", 11
    ),
    **{
        f"a state of the server: {code}": Case(
            failure(code), StoreUnavailableError, ErrorReason.SERVER_ERROR, f"answered Name (code {code})", 11
        )
        for code in (1, 91, 10107, 11601, 13436)
    },
    "no right": Case(
        failure(13), StoreUnavailableError, ErrorReason.NOT_PERMITTED, "(code 13; grant the user readWrite on", 11
    ),
    "no login": Case(failure(18), StoreUnavailableError, ErrorReason.UNAUTHENTICATED, "check user and password", 11),
    "too much for the deadline": Case(
        failure(50, kind=ExecutionTimeout), StoreUnavailableError, ErrorReason.TIMEOUT, "raise CC_MONGO_TIMEOUT_MS", 11
    ),
    "a bug": Case(AttributeError(SECRET), StoreUnavailableError, ErrorReason.DRIVER, "failed with AttributeError", 11),
}
WRITES: dict[str, Case] = {
    "a value that is no BSON": Case(InvalidDocument(SECRET), InvalidPayloadError, None, "cannot store this value", 2),
    "17 MB": Case(DocumentTooLarge(SECRET), InvalidPayloadError, None, "cannot store this value (DocumentTooL", 2),
    "an int beyond 64 bits": Case(OverflowError(SECRET), InvalidPayloadError, None, "cannot store this value", 2),
    "no sessions": Case(
        SESSIONLESS, StoreUnavailableError, ErrorReason.NO_SESSIONS, "Nothing was applied; try again", 5
    ),
    "a bad URI": Case(InvalidURI(SECRET), SettingsError, None, "the connection string does not fit", 8),
    "a name server": Case(
        raised_from(ConfigurationError("_mongodb._tcp.h."), dns_error("LifetimeTimeout")),
        StoreUnavailableError,
        ErrorReason.CONNECTION,
        "_mongodb._tcp.h. Nothing was applied. Check the name server and try again",
        7,
    ),
    "no server": Case(
        ServerSelectionTimeoutError(NO_SERVER),
        StoreUnavailableError,
        ErrorReason.TIMEOUT,
        "no primary answers: localhost:27017: [Errno 111] refused. Nothing was applied. Start it, or",
        12,
    ),
    "a bulk without the write concern": Case(
        bulk(writeConcernErrors=[{"code": 64}], nInserted=5),
        WriteOutcomeUnknownError,
        ErrorReason.SERVER_ERROR,
        "the write concern was not met",
        13,
    ),
    "a bulk refused in part, the rest without the write concern": Case(
        bulk(writeConcernErrors=[{"code": 64}], writeErrors=[{"index": 0, "code": 13}]),
        WriteOutcomeUnknownError,
        ErrorReason.SERVER_ERROR,
        "the write concern was not met",
        13,
    ),
    "a bulk refused in part": Case(
        bulk(
            writeErrors=[{"index": n, "code": code} for n, code in enumerate((121, 13, 121))],
            nInserted=1,
            nUpserted=2,
            nMatched=4,
        ),
        WriteRejectedError,
        ErrorReason.SERVER_ERROR,
        "3 of the writes were refused (codes [13, 121]); the others are stored",
        14,
        stored=7,
    ),
    "one write of a bulk": Case(
        bulk(writeErrors=[{"index": 0, "code": 121}]), WriteRejectedError, ErrorReason.SERVER_ERROR, "1 of the", 14
    ),
    "a refusal": Case(
        failure(121), WriteRejectedError, ErrorReason.SERVER_ERROR, "(code 121). The stored value is unchanged", 15
    ),
    "no right": Case(failure(13), WriteRejectedError, ErrorReason.NOT_PERMITTED, "grant the user readWrite", 15),
    "a duplicate": Case(
        failure(11000, kind=DuplicateKeyError), WriteRejectedError, ErrorReason.SERVER_ERROR, "(code 11000)", 15
    ),
    "a refusal that may be retried": Case(
        failure(10107, "RetryableWriteError"), WriteOutcomeUnknownError, ErrorReason.SERVER_ERROR, "10107", 16
    ),
    "too late": Case(
        failure(50, kind=ExecutionTimeout), WriteOutcomeUnknownError, ErrorReason.TIMEOUT, "It may have been", 16
    ),
    "a write concern that was not met": Case(
        failure(91, kind=WriteConcernError), WriteOutcomeUnknownError, ErrorReason.SERVER_ERROR, "code 91", 16
    ),
    "a write concern that was not met in time": Case(
        failure(64, kind=WTimeoutError), WriteOutcomeUnknownError, ErrorReason.TIMEOUT, "next acknowledged write", 16
    ),
    "a closed client": Case(InvalidOperation("closed"), WriteOutcomeUnknownError, None, "InvalidOperation: cl", 16),
    "silence": Case(TimeoutError(), WriteOutcomeUnknownError, ErrorReason.TIMEOUT, DEADLINE, 16),
    "a broken connection": Case(AutoReconnect("reset"), WriteOutcomeUnknownError, ErrorReason.CONNECTION, "reset", 16),
    "nonsense on the wire": Case(ProtocolError("op"), WriteOutcomeUnknownError, ErrorReason.CONNECTION, "op", 16),
    "a bug": Case(AttributeError(SECRET), WriteOutcomeUnknownError, ErrorReason.DRIVER, "with AttributeError", 16),
    "an argument of another type": Case(TypeError(SECRET), WriteOutcomeUnknownError, ErrorReason.DRIVER, "TypeErr", 16),
}


CASES = [
    pytest.param(operation, case, id=f"{operation.verb}: {name}")
    for operation, known in ((READ, READS), (WRITE, WRITES))
    for name, case in known.items()
]


def translated(operation: Operation, error: Exception) -> BacktestPersistError:
    with pytest.raises(BacktestPersistError) as caught, mongo_errors(operation):
        raise error
    return caught.value


@pytest.mark.parametrize(("operation", "case"), CASES)
def test_an_error_of_mongodb(operation: Operation, case: Case) -> None:
    """It becomes one of ours that names the operation and carries the data; no secret of the driver's gets into it."""
    error = translated(operation, case.error)
    assert type(error) is case.raised
    assert error.reason is case.reason
    assert case.message in str(error)
    assert str(error).startswith(f"{operation.verb.capitalize()} in signal-items (symbol='BTCUSDT'): ")
    assert str(error).endswith(".")
    assert ".." not in str(error)
    assert (error.collection, error.context) == ("signal-items", {"symbol": "BTCUSDT"})
    assert error.stored == case.stored
    assert SECRET not in str(error)
    assert SECRET not in str(error.__cause__)
    assert error.__suppress_context__


@pytest.mark.parametrize(("operation", "case"), CASES)
def test_the_row_that_a_case_is_for_decides_it(operation: Operation, case: Case) -> None:
    """So that a row which another one hides, or which no case meets, is seen."""
    access = Access.WRITE if operation.write else Access.READ
    fitting = [
        number
        for number, rule in enumerate(MONGO_RULES)
        if rule.access in (access, Access.ANY)
        and isinstance(case.error, rule.errors)
        and (rule.condition is None or rule.condition(case.error))
    ]
    assert fitting[0] == case.rule


def test_every_row_has_a_case() -> None:
    """A row that is added needs one."""
    assert {case.rule for case in (*READS.values(), *WRITES.values())} == set(range(len(MONGO_RULES)))


@pytest.mark.parametrize("case", READS.values(), ids=READS)
def test_of_a_read_nobody_says_that_nothing_was_applied(case: Case) -> None:
    """It would apply nothing, whatever happened."""
    assert "applied" not in str(translated(READ, case.error))


@pytest.mark.parametrize("code", [13, 18])
@pytest.mark.parametrize("operation", [READ, WRITE], ids=str)
def test_what_this_user_may_not_do_is_not_to_be_tried_again(operation: Operation, code: int) -> None:
    """Neither by the message nor by the data: it needs somebody to change the rights or the settings."""
    error = translated(operation, failure(code))
    assert not error.retryable
    assert "try again" not in str(error)


def test_what_was_translated_is_left_alone() -> None:
    """Of nested operations the inner one tells."""
    inner = InvalidKeyError("Inner.")
    assert translated(READ, inner) is inner


def test_a_cancellation_is_left_alone() -> None:
    """Nor is any other exception that is no error."""
    with pytest.raises(KeyboardInterrupt), mongo_errors(READ):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("operation", "raised"), [(READ, StoreUnavailableError), (WRITE, WriteOutcomeUnknownError)], ids=str
)
def test_the_error_of_an_operation_that_is_left_to_itself(operation: Operation, raised: type[Exception]) -> None:
    """A deadline of ours that has passed is the same error as one of the driver's."""
    error = timed_out(operation)
    assert type(error) is raised
    assert (error.reason, error.retryable, error.collection) == (ErrorReason.TIMEOUT, True, "signal-items")


def test_an_error_names_the_server_that_it_is_about() -> None:
    """Its kind, its address and the setting that the address comes from; not, if the server is not to blame."""
    endpoint = Endpoint("MongoDB", "CC_MONGO_CONNECTION_STRING", lambda: "a:1,b:2")
    for error, expected in (
        (AutoReconnect("reset"), ("MongoDB", "a:1,b:2", "CC_MONGO_CONNECTION_STRING")),
        (InvalidURI("bad"), ("MongoDB", "a:1,b:2", "CC_MONGO_CONNECTION_STRING")),
        (InvalidBSON("bad"), (None, None, None)),
    ):
        with pytest.raises(BacktestPersistError) as caught, mongo_errors(READ, endpoint=endpoint):
            raise error
        assert (caught.value.server, caught.value.host, caught.value.setting) == expected


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Operation("ping of MongoDB"), "Ping of MongoDB"),
        (Operation("count", "log-items"), "Count in log-items"),
        (READ, "Find in signal-items (symbol='BTCUSDT')"),
    ],
)
def test_the_text_of_an_operation(operation: Operation, text: str) -> None:
    """It opens the message of an error."""
    assert str(operation) == text
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.verb = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_text_of_an_operation_is_made_for_errors_only() -> None:
    """It would be the most expensive part of a command."""

    class Costly(Symbol):
        def describe(self) -> str:
            raise AssertionError("described")

    with mongo_errors(Operation("find", "signal-items", Costly())):
        pass


TLS = {
    "CERTIFICATE_VERIFY_FAILED: Hostname mismatch": "connect under a name that is in its certificate",
    "CERTIFICATE_VERIFY_FAILED: unable to get local issuer": "name the CA that signed its certificate",
    "Authentication failed.": "check user and password",
    "connection closed": "a server that wants TLS needs",
}


@pytest.mark.parametrize("said", TLS)
def test_advice_on_tls_and_passwords(said: str) -> None:
    """A driver says these things in words only; nothing else is advised then."""
    for operation in (READ, WRITE):
        text = str(translated(operation, ServerSelectionTimeoutError(said)))
        assert f"no primary answers: {said.rstrip('.')}; {TLS[said]}" in text
        assert "Start it" not in text
    text = str(redis_error("GET", redis.ConnectionError(said)))
    assert TLS[said] in text
    assert "Start it" not in text


def test_a_connection_that_breaks_is_no_question_of_tls() -> None:
    """A server that has answered before was killed, or has closed an idle connection."""
    assert "TLS" not in str(translated(READ, AutoReconnect("localhost:27017: connection closed")))
    known = Endpoint("Redis", None, lambda: None, was_known=lambda: True)
    assert "TLS" not in str(redis_error("GET", redis.ConnectionError("Connection closed by server."), endpoint=known))


def outage(problem: str, *, was_known: bool = False, has_members: bool = False) -> Endpoint:
    """Where a client without a primary leads."""
    return Endpoint(
        "MongoDB",
        "CC_MONGO_CONNECTION_STRING",
        lambda: "h:27017",
        outage=lambda: Outage(problem, was_known=was_known, has_members=has_members),
    )


START = "Start it, or correct CC_MONGO_CONNECTION_STRING; `docker compose up -d` starts servers here, `embedded()`"
AGAIN = "Check the server and try again"
ADVICE: list[tuple[Endpoint, str]] = [
    (outage("localhost:27017: [Errno 111] Connection refused"), START),
    (outage("127.0.0.1:1: [Errno 111] Connect call failed ('127.0.0.1', 1)", was_known=True), START),
    (outage("/run/mongod.sock: [Errno 2] No such file or directory", was_known=True), START),
    (outage("db-1:27017: [Errno 111] Connection refused"), START),
    (outage("db-1:27017: [Errno 111] Connection refused", was_known=True), AGAIN),
    (outage("localhost.example.com:27017: [Errno 111] Connection refused", was_known=True), AGAIN),
    (outage("localhost:27017: timed out", was_known=True), AGAIN),
    (outage("db-1:27017: [Errno -2] Name or service not known"), "Check the host in CC_MONGO_CONNECTION_STRING"),
    (outage("cluster.example.com: no name server has answered"), "Check the name server and try again"),
    (outage("a:1 is a secondary", has_members=True), "Its replica set elects one within seconds; try again"),
]


@pytest.mark.parametrize(("endpoint", "advice"), ADVICE)
@pytest.mark.parametrize("error", [TimeoutError(), ServerSelectionTimeoutError(NO_SERVER)], ids=repr)
def test_advice_on_a_server_that_is_not_there(endpoint: Endpoint, advice: str, error: Exception) -> None:
    """What the driver knows of the servers decides, whoever's deadline has passed; a local one is started like this."""
    with pytest.raises(StoreUnavailableError) as caught, mongo_errors(READ, endpoint=endpoint):
        raise error
    found = endpoint.outage()
    assert found is not None
    assert f": {found.problem}. {advice}" in str(caught.value)
    assert caught.value.__cause__ is None


def test_only_the_first_line_of_a_driver_is_passed_on() -> None:
    """The lines after it may quote a document."""
    error = AutoReconnect(f"first {'x' * 300}, full error: {SECRET}\n{SECRET}")
    text = str(translated(READ, error))
    assert "first" in text
    assert SECRET not in text
    assert "x" * 201 not in text


REDIS: dict[str, tuple[Exception, ErrorReason, int]] = {
    "no right": (redis.NoPermissionError("NOPERM"), ErrorReason.NOT_PERMITTED, 0),
    "a replica without its master": (redis.MasterDownError("MASTERDOWN"), ErrorReason.SERVER_ERROR, 1),
    "a Sentinel": (UnsupportedServerError("sentinel"), ErrorReason.UNSUPPORTED, 2),
    "a node of a cluster": (redis.MovedError("7 h:6379"), ErrorReason.UNSUPPORTED, 2),
    "keys of two nodes": (redis.ClusterCrossSlotError("CROSSSLOT"), ErrorReason.UNSUPPORTED, 2),
    "a cluster without a slot": (redis.ClusterDownError("CLUSTERDOWN"), ErrorReason.UNSUPPORTED, 2),
    "a cluster that moves a slot": (redis.AskError("7 h:6379"), ErrorReason.UNSUPPORTED, 2),
    "keys that are being moved": (redis.TryAgainError("TRYAGAIN"), ErrorReason.UNSUPPORTED, 2),
    "no login": (redis.AuthenticationError("WRONGPASS"), ErrorReason.UNAUTHENTICATED, 3),
    "no login there": (redis.AuthorizationError("no"), ErrorReason.UNAUTHENTICATED, 3),
    "an error": (redis.ResponseError("OOM"), ErrorReason.SERVER_ERROR, 4),
    "a replica": (redis.ReadOnlyError("READONLY"), ErrorReason.SERVER_ERROR, 4),
    "loading": (redis.BusyLoadingError("LOADING"), ErrorReason.SERVER_ERROR, 4),
    "silence": (TimeoutError(), ErrorReason.TIMEOUT, 5),
    "silence of the socket": (redis.TimeoutError("timed out"), ErrorReason.TIMEOUT, 5),
    "a broken connection": (redis.ConnectionError("reset"), ErrorReason.CONNECTION, 6),
    "a socket": (OSError(111, "refused"), ErrorReason.CONNECTION, 6),
    "nonsense on the wire": (redis.InvalidResponse("?"), ErrorReason.CONNECTION, 6),
    "an answer while connecting": (
        raised_from(redis.ConnectionError("x"), redis.NoPermissionError("NOPERM")),
        ErrorReason.NOT_PERMITTED,
        0,
    ),
    "a password while connecting": (
        raised_from(redis.ConnectionError("x"), raised_from(OSError(), redis.AuthenticationError("WRONGPASS"))),
        ErrorReason.UNAUTHENTICATED,
        3,
    ),
}


@pytest.mark.parametrize("name", REDIS)
def test_an_error_of_redis(name: str) -> None:
    """Each is a `StoreUnavailableError` that tells answers from silence."""
    error, reason, _ = REDIS[name]
    endpoint = Endpoint("Redis", "CC_REDIS_URL", lambda: "localhost:6379")
    with pytest.raises(StoreUnavailableError, match=r"^GET: ") as caught, redis_errors("GET", endpoint=endpoint):
        raise error
    ours = caught.value
    assert ours.reason is reason
    hopeless = (ErrorReason.NOT_PERMITTED, ErrorReason.UNAUTHENTICATED, ErrorReason.UNSUPPORTED)
    assert ours.retryable is (reason not in hopeless)
    assert (ours.server, ours.host, ours.setting) == ("Redis", "localhost:6379", "CC_REDIS_URL")
    assert ours.__cause__ is (None if reason in SILENCE else error)
    assert ours.__suppress_context__


def test_every_reason_of_redis_has_a_case() -> None:
    """A row that is added needs one."""
    assert {row for _, _, row in REDIS.values()} == set(range(len(REDIS_REASONS)))
    assert [REDIS_REASONS[row][1] for _, _, row in REDIS.values()] == [reason for _, reason, _ in REDIS.values()]


def test_the_silence_of_redis_names_its_setting() -> None:
    """A deadline of ours says nothing itself."""
    assert str(redis_error("GET", TimeoutError())) == "GET: TimeoutError: no answer within CC_REDIS_TIMEOUT_MS."


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("Error 111 connecting to 127.0.0.1:6379. Connection refused", True),
        ("Error 2 connecting to unix:///run/redis.sock. No such file or directory", True),
        ("Connection reset by peer", False),
    ],
)
def test_advice_on_a_redis_that_is_not_there(said: str, advised: bool) -> None:
    """It says how to start one; a connection that breaks says nothing of that."""
    endpoint = Endpoint("Redis", "CC_REDIS_URL", lambda: None)
    text = str(redis_error("GET", redis.ConnectionError(f"{said}."), endpoint=endpoint))
    assert text.startswith(f"GET: ConnectionError: {said}.")
    assert ("Start it, or correct CC_REDIS_URL; `docker compose up -d`" in text) is advised


@pytest.mark.parametrize(("mode", "said"), [("sentinel", "is a Sentinel, which stores"), ("cluster", "Redis Cluster")])
def test_a_server_of_another_kind_is_named(mode: str, said: str) -> None:
    """The message says what the setting has to name instead."""
    endpoint = Endpoint("Redis", "CC_REDIS_URL", lambda: None)
    text = str(redis_error("GET", UnsupportedServerError(mode), endpoint=endpoint))
    assert said in text
    assert "CC_REDIS_URL has to name" in text
