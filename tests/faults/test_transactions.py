"""Units of work under faults: all of one is stored or nothing, once, and in its place in the order of writes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from backtest_persist import (
    BacktestPersistError,
    ClosedError,
    Container,
    ErrorReason,
    Mode,
    Registry,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)
from backtest_persist.connections.deadlines import SELECTION_SECONDS
from backtest_persist.testing.subjects import EARLY
from tests.support.fail_points import Failing
from tests.support.fault_enumerator import FAULTS, HELD, Drivers, intercepted_drivers
from tests.support.killed_runs import check, play, run_of
from tests.support.proxy import DEADLINE, acknowledged, behind_proxy, with_short_deadline
from tests.support.servers import (
    PrivateMongo,
    disable_sessions,
    suspended_mongo,
    wait_until,
    wait_until_running,
    without_primary,
)
from tests.support.stopwatch import GRACE, HANG, Stopwatch, slowness
from tests.support.units import read_unit, write_unit

CONFLICT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
UNKNOWN = {"errorCode": 91, "errorLabels": ["UnknownTransactionCommitResult", "RetryableWriteError"]}


@pytest.fixture
async def witness(settings: Settings) -> AsyncIterator[Container]:
    """Another process: it shares nothing with the one under test but the servers."""
    uri = settings.mongo_connection_string.get_secret_value().replace("&appName=", "&appName=witness-")
    async with Container(settings.model_copy(update={"mongo_connection_string": SecretStr(uri)})) as container:
        yield container


async def checkpoint(persist: Registry, n: Any, key: str = "k") -> None:
    """Store a unit of work."""
    async with persist.checkpoint():
        await write_unit(persist, n, key)


async def settled(container: Container) -> None:
    """Wait until nothing goes on in the background."""
    await container.mongo_service.open_state().drain()


PASSING: dict[str, tuple[str, dict[str, Any]]] = {
    "a conflict": ("update", {**CONFLICT, "times": 3}),
    "a connection that breaks": ("update", {"closeConnection": True}),
    "no primary": ("update", {"errorCode": 10107}),
    "a lost commit": ("commitTransaction", {"closeConnection": True}),
    "a commit that is lost again and again": ("commitTransaction", {"closeConnection": True, "times": 3}),
    "an unknown result": ("commitTransaction", {**UNKNOWN, "times": 3}),
    "a result without a majority": (
        "commitTransaction",
        {"writeConcernError": {"code": 64, "errmsg": "waiting timed out"}, "times": 3},
    ),
    "a transaction that was aborted": (
        "commitTransaction",
        {"errorCode": 251, "errorLabels": ["TransientTransactionError"]},
    ),
}


async def test_a_passing_fault_is_no_error(container: Container, witness: Container, failing: Failing) -> None:
    """The transaction is carried out again, as a whole, or its result is asked for again."""
    persist = Registry(container)
    await checkpoint(persist, -1)
    for n, (name, (command, fault)) in enumerate(PASSING.items()):
        async with failing(command, **fault):
            await checkpoint(persist, n)
        assert await read_unit(witness) == n, name
    await settled(container)
    assert await read_unit(witness) == len(PASSING) - 1


LASTING: dict[str, tuple[str, dict[str, Any], type[BacktestPersistError], str]] = {
    "conflicts": ("update", CONFLICT, StoreUnavailableError, "in its way for the whole deadline"),
    "a server that breaks connections": (
        "update",
        {"closeConnection": True},
        StoreUnavailableError,
        "[Nn]othing (is stored|was applied)",
    ),
    "a commit without an answer": (
        "commitTransaction",
        {"closeConnection": True},
        WriteOutcomeUnknownError,
        "all of it is stored or nothing",
    ),
    "a cache that is too small": ("update", {"errorCode": 388}, WriteRejectedError, "commit_every"),
    "a right that is missing": ("update", {"errorCode": 13}, WriteRejectedError, "13"),
}


async def test_a_lasting_fault_is_a_typed_error(settings: Settings, witness: Container, failing: Failing) -> None:
    """Within the deadline; nothing is stored, or all of it where that is unknown; then the next one succeeds."""
    async with Container(with_short_deadline(settings)) as container:
        persist = Registry(container)
        await checkpoint(persist, "old")
        for name, (command, fault, kind, message) in LASTING.items():
            async with failing(command, times=10_000, **fault):
                with Stopwatch() as watch, pytest.raises(kind, match=message) as caught:
                    await checkpoint(persist, name)
                assert watch.seconds < DEADLINE + SELECTION_SECONDS + GRACE, name
            assert caught.value.__cause__ is None, name  # which would quote documents
            if name == "conflicts":
                assert getattr(caught.value, "reason", None) is ErrorReason.BUSY
            if kind is not WriteOutcomeUnknownError:
                assert "may have been applied" not in str(caught.value)
                assert await read_unit(witness) == "old", name
            await checkpoint(persist, "old")
            assert await read_unit(witness) == "old", name


async def test_two_processes_that_write_the_same_documents(container: Container, witness: Container) -> None:
    """Each unit is stored as a whole, after the other one, also the first writes of all documents."""
    ours, theirs = Registry(container), Registry(witness)
    for n in range(8):
        await asyncio.gather(checkpoint(ours, "ours", str(n)), checkpoint(theirs, "theirs", str(n)))
        assert await read_unit(container, str(n)) in ("ours", "theirs")


async def test_a_unique_index_of_somebody_else_is_no_conflict(container: Container, witness: Container) -> None:
    """What it refuses is refused at once, with nothing stored: it is not tried until the deadline."""
    persist = Registry(container)
    await checkpoint(persist, 1, "a")
    await container.mongo_service.database["storage-items"].create_index("payload.n", unique=True)
    with Stopwatch() as watch, pytest.raises(WriteRejectedError, match="unique index"):
        await checkpoint(persist, 1, "b")
    assert watch.seconds < 5
    assert await read_unit(witness, "b") is None
    await checkpoint(persist, 2, "b")
    assert await read_unit(witness, "b") == 2


async def test_a_database_that_is_dropped_meanwhile(container: Container, witness: Container) -> None:
    """The unique indexes are created again, and the unit is stored as a whole."""
    persist = Registry(container)
    await checkpoint(persist, 1)
    await container.mongo_service.client.drop_database(container.mongo_service.database.name)
    await checkpoint(persist, 2)
    assert await read_unit(witness) == 2
    for name in ("signal-items", "state-items", "storage-items"):
        indexes = await container.mongo_service.database[name].index_information()
        assert any(index.get("unique") for index in indexes.values()), name


async def test_a_connection_that_takes_no_sessions(container: Container, witness: Container) -> None:
    """It is dropped, and the unit is stored by another one."""
    persist = Registry(container)
    await checkpoint(persist, 1)
    assert disable_sessions(container)
    await checkpoint(persist, 2)
    assert await read_unit(witness) == 2


async def test_a_block_may_take_longer_than_a_transaction(container: Container, witness: Container) -> None:
    """Its transaction begins when it is left."""
    persist = Registry(container)
    admin: Any = container.mongo_service.client.admin
    before = (await admin.command("setParameter", 1, transactionLifetimeLimitSeconds=1))["was"]
    try:
        async with persist.checkpoint():
            await write_unit(persist, 1)
            await asyncio.sleep(1.5)
            await write_unit(persist, 2)
    finally:
        await admin.command("setParameter", 1, transactionLifetimeLimitSeconds=before)
    assert await read_unit(witness) == 2


@pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
async def test_a_unit_that_takes_longer_than_the_server_allows(
    settings: Settings, witness: Container, failing: Failing
) -> None:
    """It is not tried again when that would take too long; the error names the limit, and nothing is stored."""
    admin = witness.mongo_service.open_state().client.admin
    limit = {"setParameter": 1, "transactionLifetimeLimitSeconds": 1}
    before = (await admin.command(limit))["was"]
    try:
        async with Container(settings.model_copy(update={"mongo_timeout_ms": 5000})) as container:
            persist = Registry(container)
            await container.wait_for_init()
            async with failing("update", blockConnection=True, blockTimeMS=3500, after=1):
                with pytest.raises(StoreUnavailableError, match=r"(?s)perhaps.*transactionLifetimeLimitSeconds"):
                    await checkpoint(persist, 1)
            async with failing("update", errorCode=290, blockConnection=True, blockTimeMS=2800):
                with pytest.raises(StoreUnavailableError, match="longer than its transactionLifetimeLimitSeconds"):
                    await checkpoint(persist, 1)
            assert await read_unit(witness) is None
            async with failing("update", errorCode=290, times=4):
                await checkpoint(persist, 2)
    finally:
        await admin.command({**limit, "transactionLifetimeLimitSeconds": before})
    assert await read_unit(witness) == 2


async def test_a_document_with_an_array_in_its_context(container: Container, witness: Container) -> None:
    """It is not overwritten; the error names it, and nothing else of the unit is stored."""
    persist = Registry(container)
    await checkpoint(persist, 1, "other")
    signals = container.mongo_service.database["signal-items"]
    await signals.insert_one({"symbol": ["k"], "strategyName": "t", "exchangeName": "e", "payload": {"n": 0}})
    with pytest.raises(WriteRejectedError, match="array in its context"):
        await checkpoint(persist, 1)
    assert await witness.state_db_service.find_by_context("k", "b") is None
    await checkpoint(persist, 2, "other")


# --- cancelled, and disturbed at every point ---


@pytest.fixture
def drivers() -> Iterator[Drivers]:
    """The drivers, whose calls can be disturbed."""
    with intercepted_drivers("update_one") as drivers:
        yield drivers


DISTURBANCES = [fault for fault in FAULTS if fault is not HELD]  # as the caller of a commit that is held waits for it


async def test_at_every_await_and_call(container: Container, witness: Container, drivers: Drivers) -> None:
    """A unit is stored as a whole or not at all, as its error says; a cancelled commit is carried through."""
    persist = Registry(container)
    await checkpoint(persist, 0)
    old = 0
    for fault in DISTURBANCES:
        for number in count(1):
            outcome = await drivers.attempt(fault, number, partial(checkpoint, persist, old + 1))
            await settled(container)
            found = await read_unit(witness)
            if outcome.error is None:
                assert found == old + 1, (fault, number)
            elif isinstance(outcome.error, asyncio.CancelledError | TimeoutError | WriteOutcomeUnknownError):
                assert found in (old, old + 1), (fault, number)
            else:
                assert isinstance(outcome.error, StoreUnavailableError), (fault, number, outcome.error)
                assert found == old, (fault, number)
            old += 2
            await checkpoint(persist, old)
            assert await read_unit(witness) == old, (fault, number)
            if not outcome.met:
                assert number > (1 if fault.at_await else 4), "a transaction has more points"
                break
            assert number < 200


async def test_a_bar_at_every_await_and_call(container: Container, drivers: Drivers) -> None:
    """It is stored with its session or not at all, as its error says; the next run goes on from there."""
    persist = Registry(container)
    run = await run_of(persist, "disturbed", Mode.LIVE).__aenter__()
    for fault in DISTURBANCES[::2]:  # of each kind
        for number in count(1):
            before = run.bars
            outcome = await drivers.attempt(fault, number, partial(play, run, before + 1))
            if isinstance(outcome.error, WriteOutcomeUnknownError):
                with pytest.raises(WriteOutcomeUnknownError):
                    await run.__aexit__(None, None, None)
                run = await run_of(persist, "disturbed", Mode.LIVE).__aenter__()
                assert run.bars in (before, before + 1), (fault, number)
            else:
                await run.flush()
            assert await check(container, "disturbed", Mode.LIVE) == run.bars, (fault, number)
            if outcome.error is None:
                assert run.bars == before + 1, (fault, number)
            elif isinstance(outcome.error, StoreUnavailableError):
                assert run.bars == before, (fault, number)
            else:
                expected = asyncio.CancelledError | TimeoutError | WriteOutcomeUnknownError
                assert isinstance(outcome.error, expected), (fault, number, outcome.error)
            if not outcome.met:
                break
            assert number < 200
    await run.__aexit__(None, None, None)


async def test_a_caller_that_is_cancelled_in_the_commit(
    settings: Settings, container: Container, witness: Container, failing: Failing
) -> None:
    """It is carried through before the caller learns of it."""
    persist = Registry(container)
    await checkpoint(persist, 0)
    async with failing("commitTransaction", blockConnection=True, blockTimeMS=300):
        writing = asyncio.create_task(checkpoint(persist, 1))
        await wait_until_running(settings, "commitTransaction")
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await read_unit(witness) == 1


async def test_closing_the_container_waits_for_a_commit(
    settings: Settings, witness: Container, failing: Failing
) -> None:
    """It is stored, and no error follows; a checkpoint that ends later is a `ClosedError`."""
    container, closed = Container(settings), asyncio.Event()
    persist = Registry(container)
    await checkpoint(persist, 0)

    async def late() -> None:
        async with persist.checkpoint():
            await write_unit(persist, 2)
            await closed.wait()

    ending = asyncio.create_task(late())
    async with failing("commitTransaction", blockConnection=True, blockTimeMS=300):
        writing = asyncio.create_task(checkpoint(persist, 1))
        await wait_until_running(settings, "commitTransaction")
        await container.close()
        await writing
    closed.set()
    with pytest.raises(ClosedError):
        await ending
    assert await read_unit(witness) == 1


# --- the order of writes ---


async def test_an_older_write_that_the_network_holds_back(settings: Settings, witness: Container) -> None:
    """It is never applied after the unit, which its caller has stored since."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        persist = Registry(container)
        await checkpoint(persist, "old")
        proxy.hold_back = b"zombie"
        writing = asyncio.create_task(container.signal_db_service.upsert("k", "t", "e", {"n": "zombie"}))
        await proxy.is_holding.wait()
        with pytest.raises(WriteOutcomeUnknownError):
            await writing
        await checkpoint(persist, "later")
        proxy.released.set()
        await container.signal_db_service.upsert("k", "t", "another", {"n": 1})
    assert await read_unit(witness) == "later"


async def test_a_commit_that_the_network_holds_back(settings: Settings, witness: Container) -> None:
    """Its outcome is unknown; it is never applied after a later write, which does not have to wait for the server."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        persist = Registry(container)
        await checkpoint(persist, "old")
        proxy.hold_back = b"commitTransaction"
        with pytest.raises(WriteOutcomeUnknownError, match="all of it is stored or nothing"):
            await checkpoint(persist, "zombie")
        proxy.hold_back = b""
        with Stopwatch() as watch:
            await checkpoint(persist, "later")
        assert watch.seconds < DEADLINE
        proxy.released.set()
        await asyncio.sleep(0.1)
        assert await read_unit(container) == "later"
    assert await read_unit(witness) == "later"


async def test_a_transaction_whose_begin_the_network_holds_back(settings: Settings, witness: Container) -> None:
    """When it arrives, after the unit has failed, it locks nothing."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        persist = Registry(container)
        await acknowledged(partial(checkpoint, persist, "old"))
        proxy.hold_back = b"startTransaction"
        with pytest.raises(StoreUnavailableError):
            await checkpoint(persist, "zombie")
        proxy.hold_back = b""
        await settled(container)
        proxy.released.set()
        await asyncio.sleep(0.2)
        async with asyncio.timeout(2 * slowness()):
            await checkpoint(Registry(witness), "later")
    assert await read_unit(witness) == "later"


async def test_a_later_write_waits_for_the_commit(
    settings: Settings, container: Container, witness: Container, failing: Failing
) -> None:
    """It is sent when the unit is stored, and overwrites it; one of another collection does not wait."""
    persist = Registry(container)
    await checkpoint(persist, 0)
    async with failing("commitTransaction", blockConnection=True, blockTimeMS=400):
        committing = asyncio.create_task(checkpoint(persist, 1))
        await wait_until_running(settings, "commitTransaction")
        later = asyncio.create_task(container.signal_db_service.upsert("k", "t", "e", {"n": 2}))
        await container.schedule_db_service.upsert("k", "t", "e", {"n": 2})
        assert not committing.done()
        await asyncio.gather(committing, later)
    row = await witness.signal_db_service.find_by_context("k", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_units_over_the_same_collections_in_different_orders(container: Container, witness: Container) -> None:
    """They do not wait for one another in a circle, nor do single writes between them."""
    persist = Registry(container)
    signal, state = await persist.signal("k", "t", "e"), await persist.state("k", "b")

    async def unit(n: int) -> None:
        async with persist.checkpoint():
            writes = [signal.write_signal_data({"n": n}), state.write_state_data({"n": n}, EARLY)]
            for write in writes if n % 2 else reversed(writes):
                await write

    async with asyncio.timeout(HANG):
        await asyncio.gather(*(unit(n) for n in range(10)), *(checkpoint(persist, n, "other") for n in range(10)))
    rows = await witness.signal_db_service.find_all(), await witness.state_db_service.find_all()
    values = [{row.payload["n"] for row in found if row.payload} for found in rows]
    assert values[0] == values[1]


async def test_a_queue_that_is_busy_for_the_whole_deadline(settings: Settings, witness: Container) -> None:
    """A typed error, with nothing stored, also in the collections that were free; later writes go on."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        persist = Registry(container)
        await checkpoint(persist, "old")
        proxy.passing.clear()
        slow: list[asyncio.Task[object]] = [
            asyncio.create_task(container.signal_db_service.upsert("k", "t", "e", {"n": "old"})),
            asyncio.create_task(container.state_db_service.upsert("k", "b", {"n": "old"}, EARLY)),
        ]
        await asyncio.sleep(0)
        with Stopwatch() as watch, pytest.raises(StoreUnavailableError):
            await checkpoint(persist, "new")
        assert watch.seconds < 2 * DEADLINE + GRACE
        proxy.passing.set()
        await asyncio.gather(*slow, return_exceptions=True)

        async def is_stored() -> bool:
            try:
                await checkpoint(persist, "later")
            except StoreUnavailableError:
                return False
            return True

        await wait_until(is_stored)
        await container.signal_db_service.upsert("k", "t", "another", {"n": 1})
    assert await read_unit(witness) == "later"


# --- outages ---


async def test_a_server_that_is_silent_for_a_while(settings: Settings, witness: Container) -> None:
    """Within the deadline it is no error; beyond it, a typed one, and all is stored or nothing."""
    async with Container(settings.model_copy(update={"mongo_timeout_ms": 2000})) as container:
        persist = Registry(container)
        await checkpoint(persist, 0)
        async with suspended_mongo(container):
            writing = asyncio.create_task(checkpoint(persist, 1))
            await asyncio.sleep(0.4)
        await writing
        assert await read_unit(witness) == 1
        async with suspended_mongo(container):
            with pytest.raises((StoreUnavailableError, WriteOutcomeUnknownError)):
                await checkpoint(persist, 2)
        assert await read_unit(witness) in (1, 2)
        await checkpoint(persist, 3)
        assert await read_unit(witness) == 3


async def test_a_primary_that_steps_down_or_is_killed(mongo: PrivateMongo, mongo_settings: Settings) -> None:
    """Units that meet it are carried out again, or a typed error; each is stored as a whole or not at all."""
    settings = mongo_settings.model_copy(update={"mongo_timeout_ms": 10_000})
    async with (
        Container(settings) as container,
        Container(settings) as other,
        AsyncMongoClient[dict[str, Any]](mongo.direct_uri) as admin,
    ):
        persist = Registry(container)
        await checkpoint(persist, -1)
        stop = asyncio.Event()
        acknowledged = [-1]
        unknown: set[int] = set()

        async def work() -> None:
            for n in count():
                if stop.is_set():
                    return
                try:
                    await checkpoint(persist, n)
                except WriteOutcomeUnknownError:
                    unknown.add(n)
                except StoreUnavailableError:
                    continue
                else:
                    acknowledged.append(n)
                    unknown.clear()

        working = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        async with without_primary(admin):
            await asyncio.sleep(0.3)
        before = len(acknowledged)

        async def goes_on() -> bool:
            return len(acknowledged) > before + 3

        await wait_until(goes_on, 20)
        await mongo.kill()
        await mongo.start()
        before = len(acknowledged)
        await wait_until(goes_on, 20)
        stop.set()
        await working
        assert await read_unit(other) in {acknowledged[-1], *unknown}
