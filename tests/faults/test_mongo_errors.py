"""Errors of mongod: retried by the driver, or one of our errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from backtest_persist import (
    Container,
    InvalidKeyError,
    PersistCandleInstance,
    PersistLogInstance,
    PersistNotificationInstance,
    PersistStorageInstance,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.core import mongo_store, write_queue
from backtest_persist.testing.subjects import START
from tests.support.fail_points import Failing
from tests.support.servers import disable_sessions
from tests.support.stopwatch import GRACE, timed

RETRYABLE = [91, 189, 262, 10107, 11600, 11602]


async def increment(container: Container) -> None:
    """Count one up, by which a write that is applied twice is seen."""
    states = container.state_db_service
    context = states.context_type(signal_id="s", bucket_name="b")
    await states.mongo_store.update(context, {"$inc": {"payload.n": 1}}, upsert=True)


async def counted(container: Container) -> int:
    row = await container.state_db_service.find_by_context("s", "b")
    assert row is not None
    return row.payload["n"] if row.payload else 0


async def test_a_connection_that_breaks_once_is_no_error(container: Container, failing: Failing) -> None:
    """Reads, writes and lists are repeated by the driver, a write as the one that it was: it is applied once."""
    states, signals = container.state_db_service, container.signal_db_service
    await states.upsert("s", "b", {"n": 0}, 0)
    await signals.wait_for_init()
    async with failing("findAndModify", closeConnection=True):
        await increment(container)
    async with failing("find", closeConnection=True):
        assert await counted(container) == 1
    async with failing("update", closeConnection=True):
        rows = await asyncio.gather(*(signals.upsert("s", "t", f"e{n}", {"n": n}) for n in range(20)))
    async with failing("find", closeConnection=True):
        found = await asyncio.gather(*(signals.find_by_context("s", "t", f"e{n}") for n in range(20)))
    assert found == rows
    async with failing("find", closeConnection=True):
        assert len(await signals.find_all()) == 20
    prices = dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)
    candles = [{"timestamp": START + n * 60_000, **prices} for n in range(20)]
    await container.candle_db_service.wait_for_init()
    async with failing("insert", closeConnection=True):
        assert await container.candle_db_service.create_many("s", "1m", "e", candles) == 20
    assert await container.candle_db_service.count() == 20


TWICE: dict[str, dict[str, Any]] = {
    "connection": {"closeConnection": True},
    **{str(code): {"errorCode": code, "errorLabels": ["RetryableWriteError"]} for code in RETRYABLE},
    **{f"write concern {code}": {"writeConcernError": {"code": code, "errmsg": "no"}} for code in (64, 91)},
}


@pytest.mark.parametrize("fault", TWICE.values(), ids=TWICE)
async def test_a_fault_that_comes_twice_doubles_nothing(
    container: Container, failing: Failing, fault: dict[str, Any]
) -> None:
    """A write is acknowledged or of unknown outcome, a read right or a typed error; then the next read is true."""
    states = container.state_db_service
    await states.upsert("s", "b", {"n": 0}, 0)
    known = 0
    for _ in range(3):
        async with failing("findAndModify", times=2, **fault):
            end, seconds = await timed(increment(container))
        assert isinstance(end, WriteOutcomeUnknownError | None)
        assert seconds < 30 + GRACE
        found = await counted(container)
        assert found in ((known, known + 1) if end else (known + 1,))
        known = found
    if "writeConcernError" not in fault:
        async with failing("find", times=2, **fault):
            end, seconds = await timed(counted(container))
        assert end == known or isinstance(end, StoreUnavailableError)
        assert seconds < 30 + GRACE
    assert await counted(container) == known
    assert await states.count() == 1


@pytest.mark.parametrize("code", RETRYABLE)
async def test_a_retryable_write_concern_error_is_retried(container: Container, failing: Failing, code: int) -> None:
    """A write that was applied, but whose acknowledgement failed for a passing reason, is repeated: applied once."""
    await container.state_db_service.upsert("s", "b", {"n": 1}, 0)
    async with failing("findAndModify", writeConcernError={"code": code, "errmsg": "passing"}):
        await increment(container)
    assert await counted(container) == 2


@pytest.mark.parametrize("code", RETRYABLE)
async def test_a_retryable_error_is_retried(container: Container, failing: Failing, code: int) -> None:
    """A write that was not applied is repeated."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("findAndModify", errorCode=code, errorLabels=["RetryableWriteError"]):
        assert (await db.upsert("s", "t", "e", {"n": 2})).payload == {"n": 2}
    async with failing("find", errorCode=code):
        row = await db.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_a_write_that_may_have_been_applied_says_so(container: Container, failing: Failing) -> None:
    """A write concern that was not met is an outcome unknown; the next read tells the truth."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("findAndModify", writeConcernError={"code": 64, "errmsg": "waiting timed out"}):
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": 2})
    row = await db.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_what_the_driver_does_not_expect_is_a_typed_error(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error from inside the driver is an unknown outcome of a write."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("hunter2")

    monkeypatch.setattr(container.mongo_service.collection("signal-items"), "find_one_and_update", broken)
    with pytest.raises(WriteOutcomeUnknownError, match="AttributeError") as caught:
        await db.upsert("s", "t", "e", {"n": 2})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("code", [2, 139, 168, 16410, 40352, 51091])
async def test_a_query_that_the_server_refuses_is_an_invalid_key(
    container: Container, failing: Failing, code: int
) -> None:
    """The server is there and says what is wrong with the request: trying again would not help."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("find", errorCode=code):
        with pytest.raises(InvalidKeyError, match="failCommand"):
            await db.find_all({"symbol": "s"})


@pytest.mark.parametrize("query", [{"$where": "return ("}, {"symbol": {"$regex": "("}}, {"symbol": {"$in": 5}}])
async def test_what_the_server_says_of_a_filter_is_passed_on(container: Container, query: dict[str, Any]) -> None:
    """With a real parser: the reason is in the message."""
    with pytest.raises(InvalidKeyError, match=r"expected expression|missing \)|needs an array"):
        await container.signal_db_service.find_all(query)
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})


@pytest.mark.parametrize("code", [1, 13, 50, 11601])
async def test_a_server_that_cannot_answer_is_unavailable(container: Container, failing: Failing, code: int) -> None:
    """Anything that is not about the request stays a StoreUnavailableError."""
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    async with failing("find", times=3, errorCode=code):
        with pytest.raises(StoreUnavailableError):
            await container.signal_db_service.find_all({"symbol": "s"})


PART = 10
ITEMS = [{"id": f"i{n:02}"} for n in range(25)]
CANDLES = [
    {"timestamp": START + n * 60_000, **dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0)}
    for n in range(25)
]
PARTS: dict[str, tuple[str, str, Callable[[Container], Awaitable[Any]]]] = {
    "storage": ("storage", "update", lambda c: c.storage_db_service.upsert_many(True, ITEMS)),
    "storage adapter": ("storage", "update", lambda c: PersistStorageInstance(True, ioc=c).write_storage_data(ITEMS)),
    "notification": ("notification", "update", lambda c: c.notification_db_service.upsert_many(True, ITEMS)),
    "notification adapter": (
        "notification",
        "update",
        lambda c: PersistNotificationInstance(True, ioc=c).write_notification_data(ITEMS),
    ),
    "log": ("log", "update", lambda c: c.log_db_service.create_many(ITEMS)),
    "log adapter": ("log", "update", lambda c: PersistLogInstance(ioc=c).write_log_data(ITEMS)),
    "candle": ("candle", "insert", lambda c: c.candle_db_service.create_many("s", "1m", "e", CANDLES)),
    "candle adapter": (
        "candle",
        "insert",
        lambda c: PersistCandleInstance("s", "1m", "e", ioc=c).write_candles_data(CANDLES),
    ),
}
"""Calls that send 25 items in several commands: the domain, the command, the call."""


@pytest.fixture
async def parted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Container]:
    """A container that sends ten items with one command."""
    monkeypatch.setattr(write_queue, "BULK_SIZE", PART)
    async with Container(settings.model_copy(update={"candle_chunk_size": PART})) as container:
        yield container


@pytest.mark.parametrize("kind", PARTS)
async def test_what_the_parts_before_a_failure_have_stored_is_not_denied(
    parted: Container, failing: Failing, kind: str
) -> None:
    """A later part that is refused leaves an outcome unknown that says how many are stored, and these are there."""
    domain, command, write = PARTS[kind]
    db = getattr(parted, f"{domain}_db_service")
    with pytest.raises(WriteRejectedError):
        async with failing(command, errorCode=13):
            await write(parted)
    assert await db.count() == 0
    for parts in (2, 1):
        await db.mongo_store.delete_many({})
        with pytest.raises(
            WriteOutcomeUnknownError, match=f"Of 25 items the first {parts * PART} are stored"
        ) as caught:
            async with failing(command, after=parts, errorCode=13):
                await write(parted)
        assert isinstance(caught.value.__cause__, WriteRejectedError)
        assert await db.count() == parts * PART
    await write(parted)
    assert await db.count() == len(ITEMS)


@pytest.mark.parametrize("code", [13, 50])
async def test_a_bucket_that_is_cleared_in_part_says_so(parted: Container, failing: Failing, code: int) -> None:
    """Whether the part that failed was refused or was too late; the next call goes on."""
    db = parted.interval_db_service
    await asyncio.gather(*(db.upsert("b", f"k{n}", {}, 0) for n in range(25)))
    with pytest.raises(WriteOutcomeUnknownError, match=f"{PART} documents are deleted.*all of it again is safe"):
        async with failing("delete", after=1, errorCode=code):
            await db.clear_bucket("b")
    assert await db.clear_bucket("b") == 15


@pytest.mark.parametrize("code", [2, 11601])
async def test_an_acknowledged_write_whose_row_cannot_be_read_is_not_denied(
    container: Container, failing: Failing, code: int
) -> None:
    """Writers who share a bulk hear of an outcome unknown then, and who wrote something new gets the row."""
    db = container.signal_db_service
    names = [f"s{n}" for n in range(6)]
    await asyncio.gather(*(db.upsert(name, "t", "e", {"n": "old"}) for name in names[:3]))
    async with failing("find", errorCode=code):
        ends = await asyncio.gather(
            *(db.upsert(name, "t", "e", {"n": "new"}) for name in names), return_exceptions=True
        )
    for end in ends[:3]:
        assert isinstance(end, WriteOutcomeUnknownError)
        assert "acknowledged" in str(end)
    rows = {row.symbol: row for row in await db.find_all()}
    assert {name: row.payload for name, row in rows.items()} == {name: {"n": "new"} for name in names}
    assert ends[3:] == [rows[name] for name in names[3:]]


async def test_connections_without_sessions_are_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes go on by others, in their order, once each and without an error; reads and lists as before."""
    monkeypatch.setattr(mongo_store, "BATCH_SIZE", 20)
    async with Container(settings) as container:
        states, logs = container.state_db_service, container.log_db_service
        await asyncio.gather(*(service.count() for service in container.db_services))
        await asyncio.gather(*(states.upsert("s", f"b{n}", {"n": 0}, 0) for n in range(5)))
        await container.interval_db_service.upsert("i", "k", {}, 0)
        assert disable_sessions(container) > 1
        writes = [states.upsert("s", f"b{n % 5}", {"n": n}, -n) for n in range(50)]
        _, _, removed, new = await asyncio.gather(
            asyncio.gather(*writes),
            container.measure_db_service.upsert("b", "k", {}),
            container.interval_db_service.clear_bucket("i"),
            logs.create_many([{"id": f"{n}"} for n in range(5)]),
        )
        assert {row.bucket_name: row.payload for row in await states.find_all()} == {
            f"b{n % 5}": {"n": n} for n in range(45, 50)
        }
        assert (removed, new, await logs.count()) == (1, 5, 5)
        assert await container.interval_db_service.count() == 0


async def test_a_deployment_without_sessions_is_an_error(
    container: Container, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """Nothing was sent."""
    module = (
        "pymongo.asynchronous.pool.AsyncConnection" if driver == "pymongo" else "pymongo.synchronous.pool.Connection"
    )
    no_sessions = property(lambda _: False, lambda self, value: self.__dict__.__setitem__("supports_sessions", value))
    monkeypatch.setattr(f"{module}.supports_sessions", no_sessions, raising=False)
    with pytest.raises(StoreUnavailableError, match=r"Sessions are not supported.*Nothing was applied"):
        await container.signal_db_service.upsert("s", "t", "e", {})
    assert await container.signal_db_service.count() == 0
