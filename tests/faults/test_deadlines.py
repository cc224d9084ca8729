"""Every operation ends within CC_MONGO_TIMEOUT_MS, whoever opened the client and whatever mongod does."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from bson import ObjectId

from backtest_persist import Container, LogRow, Settings, StoreUnavailableError, WriteOutcomeUnknownError
from backtest_persist.core import mongo_store
from backtest_persist.core.query import to_sort
from backtest_persist.operations import IdCounts, rebuild, verify
from backtest_persist.operations.cache import collection
from backtest_persist.testing.subjects import candle
from tests.support.commands import monitored_container
from tests.support.fail_points import Failing
from tests.support.servers import suspended_mongo, wait_until_running
from tests.support.stopwatch import GRACE, pauses, timed

SERIES = {"exchangeName": "e", "interval": "1m"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A deadline that a test can wait for."""
    return settings.model_copy(update={"mongo_timeout_ms": 1000})


async def outcome(operation: Awaitable[Any]) -> tuple[type[Any], float]:
    """Return the type of the result or error of an operation, and the seconds it took."""
    result, seconds = await timed(operation)
    return cast("type[Any]", type(result)), seconds


async def test_an_injected_client_has_the_deadline(settings: Settings, driver: str) -> None:
    """A client without timeoutMS does not wait for longer than the settings say."""
    async with monitored_container(settings, driver) as (container, _):
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": 1})
        async with suspended_mongo(container):
            ends = await asyncio.gather(
                outcome(db.find_by_context("s", "t", "e")),
                outcome(db.upsert("s", "t", "e", {"n": 2})),
                outcome(db.find_all()),
                outcome(db.count()),
                outcome(container.log_db_service.create_many([{"id": "a"}])),
                outcome(container.risk_db_service.wait_for_init()),
                outcome(container.candle_db_service.find_gaps("b", "1m", "e", -60_000, 0)),
            )
            assert [kind for kind, _ in ends] == [StoreUnavailableError, WriteOutcomeUnknownError] + [
                StoreUnavailableError
            ] * 5
            assert [seconds for _, seconds in ends if seconds > 1 + GRACE] == [], ends
        assert await db.find_by_context("s", "t", "e") is not None


async def test_an_operation_does_not_wait_for_a_long_index_build(
    container: Container, settings: Settings, failing: Failing
) -> None:
    """Operations end within the deadline while indexes are built; `wait_for_init` waits for them."""
    db = container.signal_db_service
    async with failing("createIndexes", blockConnection=True, blockTimeMS=2500):
        building = asyncio.create_task(db.wait_for_init())
        await wait_until_running(settings, "createIndexes")
        ends = await asyncio.gather(outcome(db.find_by_context("s", "t", "e")), outcome(db.upsert("s", "t", "e", {})))
        assert [kind for kind, _ in ends] == [StoreUnavailableError] * 2
        assert max(seconds for _, seconds in ends) < 1 + GRACE
        await building
    assert await db.find_by_context("s", "t", "e") is None


async def test_an_operation_that_builds_indexes_has_its_deadline(container: Container, failing: Failing) -> None:
    """The first operation creates missing indexes, but within its own deadline."""
    async with failing("createIndexes", blockConnection=True, blockTimeMS=2500):
        kind, seconds = await outcome(container.signal_db_service.find_by_context("s", "t", "e"))
    assert (kind, seconds < 1 + GRACE) == (StoreUnavailableError, True)


@pytest.fixture
async def slow(container: Container, failing: Failing, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A hundred log entries, thirty of each date, and as many candles, in small batches; each takes the server 0.3 s.

    The server counts that, so of one query it gives three or four batches within its second.
    """
    monkeypatch.setattr(mongo_store, "LIST_BATCH", 10)
    monkeypatch.setattr(collection, "BATCH", 20)
    entries = [{"entryId": f"i{n:02}", "payload": {"id": f"i{n:02}"}, **dated(n // 30)} for n in range(100)]
    random.shuffle(entries)  # neither their ids nor where they lie follow the dates
    candles = [{**SERIES, **candle(n % 25), "symbol": f"s{n // 25}", **dated(0)} for n in range(100)]
    for service, documents in ((container.log_db_service, entries), (container.candle_db_service, candles)):
        await service.wait_for_init()
        await container.mongo_service.collection(service.collection).insert_many(documents)
    async with failing("getMore", times=1000, blockConnection=True, blockTimeMS=300):
        yield


def dated(minute: int) -> dict[str, Any]:
    date = datetime(2024, 1, 1, 0, minute, tzinfo=UTC)
    return {"createDate": date, "updatedDate": date, "__v": 0}


@pytest.mark.usefixtures("slow")
async def test_a_list_may_take_the_server_longer_than_one_operation(container: Container) -> None:
    """The deadline is that of a batch: a list is whole and in order, each row once, however long it takes in all."""
    log, candles = container.log_db_service, container.candle_db_service
    context = [("exchange_name", 1), ("symbol", 1), ("interval", 1), ("timestamp", 1)]

    async def iterated() -> list[LogRow]:
        return [row async for row in log.iterate(sort=[("entry_id", 1)])]

    async def sifted() -> list[LogRow]:
        return [row async for rows, _ in log.mongo_store.sift(sort=[("_id", 1)]) for row in rows]

    by_date, filtered, page, by_context, by_id, series = await asyncio.gather(
        log.find_all(),
        log.find_all({"entry_id": {"$regex": "[^7]$"}}, limit=80),
        log.paginate({}, limit=80, offset=5),
        iterated(),
        sifted(),
        candles.find_all(sort=context),
    )
    assert [(row.create_date, row.id) for row in by_date] == sorted((row.create_date, row.id) for row in by_id)
    assert len(by_date) == 100
    assert filtered == [row for row in by_date if row.entry_id[-1] != "7"][:80]
    assert (page.rows, page.total) == (by_date[5:85], 100)
    assert [row.entry_id for row in by_context] == [f"i{n:02}" for n in range(100)]
    assert [row.id for row in by_id] == sorted({row.id for row in by_date})
    assert [(row.symbol, row.timestamp) for row in series] == [
        (f"s{n // 25}", candle(n % 25)["timestamp"]) for n in range(100)
    ]


MISSING = object()
KINDS: dict[str, list[dict[str, Any]]] = {
    "ids": [
        {"_id": id} for id in (None, 5, 5.5, 2**40, "text", ObjectId(), False, True, datetime(2024, 1, 1, tzinfo=UTC))
    ],
    "dates": [{"createDate": date} for date in (MISSING, None, MISSING, 5, "2024", "2024-01-01T00:00:00Z", True)]
    + [{}, {}],
}
"""Values that other programs store as an id or a date, in the order of the server."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_goes_on_behind_values_of_another_type(
    container: Container, failing: Failing, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the time of the server ends, the list continues behind ids and dates of every type."""
    monkeypatch.setattr(mongo_store, "LIST_BATCH", 1)
    log = container.log_db_service
    await log.wait_for_init()
    entry: dict[str, Any] = {"payload": {}, **dated(0)}
    documents = [{**entry, "entryId": f"i{n}", **other} for n, other in enumerate(KINDS[kind])]
    documents = [{name: value for name, value in whole.items() if value is not MISSING} for whole in documents]
    await container.mongo_service.collection(log.collection).insert_many(documents)
    async with failing("getMore", times=1000, errorCode=50):
        listing = log.mongo_store.listing({}, to_sort(None, log.schema()), list[dict[str, Any]])
        found = [document["entryId"] async for batch in listing for document in batch]
        assert found == [f"i{n}" for n in range(len(documents))]
        numbers = {"_id": math.nan, **entry, "entryId": "nan"}, {"_id": 5.25, **entry, "entryId": "number"}
        await container.mongo_service.collection(log.collection).insert_many(numbers)
        with pytest.raises(StoreUnavailableError, match="CC_MONGO_TIMEOUT_MS"):  # rather than without what follows NaN
            await log.find_all({"_id": {"$type": "double"}}, sort=[("_id", 1)])


@pytest.mark.usefixtures("slow")
async def test_a_list_that_nobody_could_go_on_with_says_what_to_do(container: Container) -> None:
    """A descending order, or one by a payload, could lose rows; that is an error which names the setting."""
    log = container.log_db_service
    sorts = [("create_date", -1)], [("entry_id", 1), ("_id", -1)], [("payload.id", 1)]
    ends = await asyncio.gather(*(timed(log.find_all(sort=sort)) for sort in sorts), timed(log.list_all(90)))
    for end, _ in ends:
        assert isinstance(end, StoreUnavailableError)
        assert "CC_MONGO_TIMEOUT_MS" in str(end)


@pytest.mark.usefixtures("slow")
async def test_redis_is_compared_with_more_documents_than_a_deadline_allows(container: Container) -> None:
    """`verify` sees, and `rebuild` remembers, every document once, whatever the server needs for all of them."""
    found = await verify(container)
    assert found.domains["log"] == IdCounts(missing=100)
    assert (await rebuild(container, domains=["log"])).domains == {"log": 100}
    assert await container.log_cache_service.size() == 100


async def test_closing_does_not_wait_for_a_stopped_mongod(settings: Settings) -> None:
    """The end of the sessions is told to the server within one deadline, and the event loop goes on meanwhile."""
    container = Container(settings)
    await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    async with suspended_mongo(container):
        closing = asyncio.create_task(timed(container.close()))
        longest = (await pauses(closing))[-1]
        _, seconds = await closing
    assert (seconds < 1 + GRACE, longest < 0.25) == (True, True), (seconds, longest)
