"""Outages of MongoDB while there is work to do: typed errors in time, and nothing acknowledged is lost."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import (
    BacktestPersistError,
    Container,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.core import write_queue
from tests.support.containers import open_container
from tests.support.fail_points import Failing
from tests.support.load import under_load
from tests.support.servers import PrivateMongo, suspended, wait_until, without_primary
from tests.support.stopwatch import GRACE, HANG, pauses, timed

DEADLINE = 1.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A deadline that a test can wait for."""
    return settings.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})


async def test_a_stopped_mongod_leaves_the_event_loop_free(container: Container) -> None:
    """Mongod is suspended for three seconds: typed errors within the deadline, and other tasks run as before."""
    db = container.signal_db_service
    row = await db.upsert("s", "t", "e", {"n": 1})
    pid = (await container.mongo_service.database.command("serverStatus"))["pid"]

    async def work(seconds: float) -> list[tuple[Any, float]]:
        until, ends = time.monotonic() + seconds, list[tuple[Any, float]]()
        while time.monotonic() < until:
            reading = (timed(db.find_by_context("s", "t", f"e{n}")) for n in range(10))
            writing = (timed(db.upsert("s", "t", f"w{n}", {"n": 1})) for n in range(10))
            ends += await asyncio.gather(*reading, *writing)
            await asyncio.sleep(0.01)
        return ends

    async with suspended(pid):
        suffering = asyncio.create_task(work(2.5))
        lags = await pauses(suffering)
        ends = await suffering
    assert {type(end) for end, _ in ends} == {StoreUnavailableError, WriteOutcomeUnknownError}
    assert max(seconds for _, seconds in ends) < DEADLINE + GRACE
    assert (lags[-len(lags) // 50] < 0.05, lags[-1] < 0.25) == (True, True), lags[-10:]  # the machine has pauses, too
    assert await db.find_by_context("s", "t", "e") == row


async def test_a_mongod_killed_under_load_loses_nothing(mongo_settings: Settings, mongo: PrivateMongo) -> None:
    """Five times mongod dies and is started again: each acknowledged write is there, and work goes on in 3 s."""
    impatient = mongo_settings.model_copy(update={"mongo_timeout_ms": 500})  # mongod needs longer to start
    async with open_container(impatient) as container, under_load(impatient, container) as load:
        for _ in range(5):
            await mongo.kill()
            await asyncio.gather(load.wait_for_an_error(), mongo.start())
            assert await load.wait_for_successes() < 3
        kinds = {type(error) for error in load.errors}
        assert kinds <= {StoreUnavailableError, WriteOutcomeUnknownError, WriteRejectedError}
        said = {str(error) for error in load.errors}
        assert not [text for text in said if re.search("TLS|Topology|configured timeouts", text)]
        refused = {str(error) for error in load.errors if isinstance(error, StoreUnavailableError)}
        refused = {text for text in refused if "refused" in text}
        assert [text for text in refused if "`docker compose up -d`" not in text] == []


async def test_a_replica_set_without_a_primary_is_told_from_one_without_members(
    mongo_settings: Settings, mongo: PrivateMongo
) -> None:
    """The error says that the members answer, and that they elect a primary; nobody is told to start a server."""
    impatient = mongo_settings.model_copy(update={"mongo_timeout_ms": 500})
    async with Container(impatient) as container, AsyncMongoClient[dict[str, Any]](mongo.direct_uri) as admin:
        said = r": no primary answers: \S*\.sock is a secondary\.( Nothing was applied\.)? Its replica set elects one"
        client = container.mongo_service.client

        async def gone() -> bool:
            return not client.topology_description.has_writable_server()

        async with without_primary(admin):
            await wait_until(gone)
            with pytest.raises(StoreUnavailableError, match=said):
                await container.signal_db_service.find_by_context("s", "t", "e")
            with pytest.raises(StoreUnavailableError, match=said):
                await container.signal_db_service.upsert("s", "t", "e", {})


async def test_a_step_down_under_load_loses_and_doubles_nothing(mongo_settings: Settings, mongo: PrivateMongo) -> None:
    """The primary steps down and is elected again: a counter is what was acknowledged, and entries are there once."""
    patient = mongo_settings.model_copy(update={"mongo_timeout_ms": 10_000})
    async with Container(patient) as container, AsyncMongoClient[dict[str, Any]](mongo.uri) as admin:
        states, logs = container.state_db_service, container.log_db_service
        await asyncio.gather(states.wait_for_init(), logs.wait_for_init())
        context = states.context_type(signal_id="s", bucket_name="b")
        await states.upsert("s", "b", {"n": 0}, 0)
        done = False
        outcomes: list[tuple[str, Any, float]] = []

        async def increment() -> None:
            while not done:
                update = {"$inc": {"payload.n": 1}}
                end, seconds = await timed(states.mongo_store.update(context, update, upsert=True))
                outcomes.append(("counter", end, seconds))

        async def append(task: int) -> None:
            for n in count():
                if done:
                    return
                end, seconds = await timed(logs.create_many([{"id": f"{task}-{n}-{part}"} for part in range(3)]))
                outcomes.append((f"{task}-{n}", end, seconds))

        async def work() -> None:
            before = len(outcomes)
            async with asyncio.timeout(HANG):
                while len(outcomes) < before + 50:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for task in range(4):
                group.create_task(increment())
                group.create_task(append(task))
            await work()
            for _ in range(2):
                await admin.admin.command("replSetStepDown", 1, force=True)
                await work()
            done = True

        failed = [end for _, end, _ in outcomes if isinstance(end, BacktestPersistError)]
        assert failed == []
        assert max(seconds for *_, seconds in outcomes) < 10 + GRACE
        row = await states.find_by_context("s", "b")
        assert row is not None
        assert row.payload == {"n": sum(name == "counter" for name, *_ in outcomes)}
        appended = {f"{name}-{part}" for name, *_ in outcomes if name != "counter" for part in range(3)}
        assert Counter(row.entry_id for row in await logs.find_all()) == Counter(appended)
        assert {end for name, end, _ in outcomes if name != "counter"} == {3}


async def test_a_mongod_that_starts_late_is_waited_for_by_trying_again(
    mongo_settings: Settings, mongo: PrivateMongo
) -> None:
    """Without mongod operations are typed errors in time, closing is bounded, and with it the same container works."""
    other = Container(mongo_settings)
    await other.signal_db_service.wait_for_init()
    await mongo.kill()
    container = Container(mongo_settings)
    try:
        db = container.signal_db_service
        ends = await asyncio.gather(
            timed(db.find_by_context("s", "t", "e")), timed(db.upsert("s", "t", "e", {})), timed(db.find_all())
        )
        assert {type(end) for end, _ in ends} == {StoreUnavailableError}
        assert any("no primary answers: " in str(end) and "`embedded()`" in str(end) for end, _ in ends)
        assert max(seconds for _, seconds in ends) < DEADLINE + GRACE
        await timed(other.signal_db_service.count())
        end, seconds = await timed(other.signal_db_service.upsert("s", "t", "e", {}))
        assert (type(end), seconds < DEADLINE + GRACE) == (StoreUnavailableError, True)  # surely nothing was sent
        _, seconds = await timed(other.close())
        assert seconds < DEADLINE + GRACE
    finally:
        await mongo.start()
    async with asyncio.timeout(HANG):
        while isinstance(row := (await timed(db.upsert("s", "t", "e", {"n": 1})))[0], BacktestPersistError):
            pass
    assert await db.find_by_context("s", "t", "e") == row
    await container.close()


@pytest.mark.parametrize("milliseconds", [20, 400])
async def test_a_small_pool_in_front_of_a_slow_server_never_blocks_for_good(
    settings: Settings, failing: Failing, milliseconds: int
) -> None:
    """500 operations by two connections, each command delayed: all end, with a result or a typed error in time.

    Half of them come later, while others are in flight, and no call comes after them.
    """
    slow = settings.model_copy(update={"mongo_max_pool_size": 2})

    async def begun(n: int, operation: Awaitable[Any]) -> tuple[Any, float]:
        await asyncio.sleep(n % 2 * n * 0.002)
        return await timed(operation)

    async with Container(slow) as container:
        db, storage, log = container.signal_db_service, container.storage_db_service, container.log_db_service
        commands = ("find", "findAndModify", "update", "aggregate")
        async with failing(*commands, times=100_000, blockConnection=True, blockTimeMS=milliseconds):
            async with asyncio.timeout(HANG):
                ends = await asyncio.gather(
                    *(begun(n, db.upsert("s", "t", f"e{n}", {"n": n})) for n in range(125)),
                    *(begun(n, db.find_by_context("s", "t", f"e{n}")) for n in range(125)),
                    *(begun(n, storage.upsert(True, f"e{n}", {"n": n})) for n in range(125)),
                    *(begun(n, log.find_all({"entry_id": f"e{n}"})) for n in range(125)),
                )
        assert max(seconds for _, seconds in ends) < DEADLINE + GRACE
        failed = [end for end, _ in ends if isinstance(end, BacktestPersistError)]
        assert len(failed) < len(ends) or milliseconds > 100
        assert {type(end) for end in failed} <= {StoreUnavailableError, WriteOutcomeUnknownError}
        async with open_container(settings, mongo_timeout_ms=30_000) as witness:
            rows = {row.exchange_name for row in await witness.signal_db_service.find_all()}
        assert rows >= {end.exchange_name for end, _ in ends[:125] if not isinstance(end, BacktestPersistError)}
        async with asyncio.timeout(HANG):  # the server may be busy with what has timed out
            while failed := await failures(db.upsert("s", "t", f"e{n}", {"n": n}) for n in range(125)):
                assert {type(end) for end in failed} <= {StoreUnavailableError, WriteOutcomeUnknownError}


async def failures(operations: Iterable[Awaitable[Any]]) -> list[BacktestPersistError]:
    """Await operations at once and return their typed errors."""
    ends = await asyncio.gather(*map(timed, operations))
    return [end for end, _ in ends if isinstance(end, BacktestPersistError)]


@pytest.mark.parametrize("domain", ["storage", "log"])
async def test_a_server_that_goes_away_between_the_parts_of_a_call(
    mongo_settings: Settings, mongo: PrivateMongo, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the next part was sent, yet what was stored before is: the outcome is unknown, and says how much."""
    monkeypatch.setattr(write_queue, "BULK_SIZE", 10)
    items = [{"id": f"{n}"} for n in range(25)]
    async with Container(mongo_settings) as container, AsyncMongoClient[dict[str, Any]](mongo.direct_uri) as admin:
        redis, mongo_client = container.redis_service, container.mongo_service.client
        db: Any = getattr(container, f"{domain}_db_service")

        def write() -> Awaitable[int]:
            return (
                container.storage_db_service.upsert_many(True, items) if domain == "storage" else db.create_many(items)
            )

        async def gone() -> bool:
            return not mongo_client.topology_description.has_writable_server()

        async with AsyncExitStack() as outage:
            remember = redis.attempt

            async def attempt(*args: Any) -> Any:  # which follows each part
                if await db.count() == 20:
                    await outage.enter_async_context(without_primary(admin))
                    await wait_until(gone)
                return await remember(*args)

            with monkeypatch.context() as patch:
                patch.setattr(redis, "attempt", attempt)
                with pytest.raises(WriteOutcomeUnknownError, match="the first 20 are stored") as caught:
                    await write()
            assert isinstance(caught.value.__cause__, StoreUnavailableError)
            with pytest.raises(StoreUnavailableError):
                await write()
        assert await db.count() == 20
        assert await write() == 5
