"""Leases whose holder is killed, paused or forked."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from backtest_persist import (
    BacktestPersistError,
    Container,
    Lease,
    LeaseHeldError,
    Settings,
    StoreUnavailableError,
)
from tests.support.containers import open_container
from tests.support.fail_points import Failing
from tests.support.fault_enumerator import FAULTS, intercepted_drivers
from tests.support.leases import commit, lease_of, silence, store
from tests.support.processes import settings_environment, start_python
from tests.support.proxy import acknowledged, behind_proxy, with_short_deadline
from tests.support.servers import PrivateMongo, suspended, wait_until, without_primary
from tests.support.stopwatch import HANG, slowness

BY_ONE_DRIVER = pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
"""For what is long, or decided by the server."""
WHERE = [("motor", "inside"), ("pymongo", "inside"), ("pymongo", "outside")]
"""Whether the holder is inside or outside of a transaction, by which driver."""
CANCELLED = (asyncio.CancelledError, TimeoutError)

_HOLDER = """
import asyncio, sys
from backtest_persist import LeaseLostError, ioc
from tests.support.leases import commit, lease_of, silence, store

async def main(inside, duration):
    numbers = ioc.mongo_service.database["numbers"]

    async def write(session):
        await numbers.update_one({"_id": 1}, {"$set": {"n": "of the first"}}, session=session)

    async with lease_of(ioc, duration=float(duration)) as lease:
        session = await lease.session()
        if inside == "inside":
            await lease.state.start_transaction(session)
            await lease.fence(session)
            await write(session)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        if inside == "inside":
            try:
                await session.commit_transaction()
                print("committed", flush=True)
            except Exception as error:
                print(type(error).__name__, flush=True)
            await lease.abandon_session()
        try:
            await commit(lease, write)
            print("committed", flush=True)
        except LeaseLostError as error:
            print("LeaseLostError", error.pid, flush=True)
    await ioc.close()

asyncio.run(main(*sys.argv[1:]))
"""


_COMMITTER = """
import asyncio, sys
from backtest_persist import ioc
from tests.support.leases import lease_of, store

async def main():
    async with lease_of(ioc, duration=1) as lease:
        await store(ioc, lease, 1)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await store(ioc, lease, 2)
            print("stored", flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)
    await ioc.close()

asyncio.run(main())
"""


@asynccontextmanager
async def holder(settings: Settings, inside: str, duration: float) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a process that holds the lease of the tests, perhaps inside a transaction."""
    async with started(settings, _HOLDER, inside, str(duration)) as process:
        yield process


@asynccontextmanager
async def started(settings: Settings, *program: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a program until it is ready, and for the length of a block."""
    process = await start_python(
        *("-c", *program),
        environment=settings_environment(settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await line(process) == "ready"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        return (await process.stdout.readline()).decode().strip()


@pytest.fixture
async def numbers(container: Container) -> Any:
    """A collection with one document, which the first run locks and the second one writes."""
    numbers = container.mongo_service.database["numbers"]
    await numbers.insert_one({"_id": 1, "n": 0})
    return numbers


@pytest.mark.parametrize(("driver", "inside"), WHERE, indirect=["driver"])
async def test_a_killed_holder_is_succeeded_at_once(
    settings: Settings, container: Container, numbers: Any, inside: str
) -> None:
    """Also one that was killed inside of a transaction: what that has locked can be written within 2 s."""
    async with holder(settings, inside, 60) as process:
        with pytest.raises(LeaseHeldError) as refused:
            await lease_of(container).__aenter__()
        assert refused.value.pid == process.pid
        process.kill()
        async with asyncio.timeout(2):
            await process.wait()
            async with lease_of(container, wait=1) as lease:
                assert lease.epoch == 2
                await numbers.update_one({"_id": 1}, {"$set": {"n": 1}})
    assert await numbers.find_one({}) == {"_id": 1, "n": 1}


@pytest.mark.parametrize(("driver", "inside"), WHERE, indirect=["driver"])
async def test_a_paused_holder_that_goes_on_cannot_commit(
    settings: Settings, container: Container, numbers: Any, inside: str
) -> None:
    """The second run is refused, then admitted when the lease has run out; the first one is told by whom."""
    async with holder(settings, inside, 1) as process:
        async with suspended(process.pid):
            with pytest.raises(LeaseHeldError):
                await lease_of(container).__aenter__()
            started = time.monotonic()
            lease = await lease_of(container, wait=20).__aenter__()
            assert time.monotonic() - started < 10
            async with asyncio.timeout(2):
                await numbers.update_one({"_id": 1}, {"$set": {"n": 1}})
        assert process.stdin is not None
        process.stdin.write(b"\n")
        if inside == "inside":
            assert await line(process) == "OperationFailure"
        assert await line(process) == f"LeaseLostError {os.getpid()}"
        async with asyncio.timeout(HANG):
            assert await process.wait() == 0
        assert (lease.epoch, lease.lost()) == (2, None)
        await lease.__aexit__(None, None, None)
    assert await numbers.find_one({}) == {"_id": 1, "n": 1}


@BY_ONE_DRIVER
@pytest.mark.parametrize("step", ["enter", "session", "exit"])
async def test_a_fault_at_any_point_leaves_no_lease_behind(settings: Settings, container: Container, step: str) -> None:
    """Cancelled, timed out or cut off anywhere, it can be gone on with; others get the lease once it has run out."""
    await container.wait_for_init()
    points = 0
    async with open_container(settings) as other:
        with intercepted_drivers() as drivers:
            for fault in FAULTS if step != "exit" else FAULTS[:-1]:  # to leave is not cut short
                for number in itertools.count(1):
                    lease = lease_of(container, duration=0.5)
                    if step != "enter":
                        await lease.__aenter__()
                    call = {"enter": lease.__aenter__, "session": lease.session, "exit": partial(leave, lease)}[step]
                    outcome = await drivers.attempt(fault, number, call)
                    drivers.released.set()
                    error = outcome.error
                    assert error is None or isinstance(error, (BacktestPersistError, *CANCELLED)), (fault, number)
                    if step == "session":
                        session = await lease.session()
                        found = await other.mongo_service.database["lease-items"].find_one({})
                        assert found is not None
                        assert session.session_id["id"] in found["sessionIds"]
                    if step != "enter" or error is None:
                        await leave(lease)
                    async with asyncio.timeout(5), lease_of(other, wait=4) as successor:
                        assert successor.lost() is None
                    if not outcome.met:
                        break
                    points += 1
    assert points >= len(FAULTS) - 1


async def leave(lease: Lease) -> None:
    await lease.__aexit__(None, None, None)


@BY_ONE_DRIVER
async def test_a_lease_survives_an_outage(settings: Settings, mongo: PrivateMongo, mongo_settings: Settings) -> None:
    """A server that is suspended, killed or steps down, for longer than the lease lasts, has the same holder then."""
    async with open_container(mongo_settings, mongo_timeout_ms=1000) as container:
        async with lease_of(container, duration=1) as lease:
            await lease.session()
            async with suspended(mongo.pid):
                await asyncio.sleep(1.2)
            await mongo.kill()
            await asyncio.sleep(0.3)
            await mongo.start()
            async with AsyncMongoClient[dict[str, Any]](mongo.direct_uri) as admin, without_primary(admin):
                await asyncio.sleep(0.5)
            expiry = await renewed(container)

            async def is_renewed_again() -> bool:
                return await renewed(container) > expiry

            await wait_until(is_renewed_again, 15)
            assert lease.lost() is None
            await commit(lease, lambda session: write_number(container, session))
        async with AsyncMongoClient[dict[str, Any]](mongo.direct_uri) as admin, without_primary(admin):
            waiting = asyncio.create_task(leave_when_taken(container))  # for a server as well
            await asyncio.sleep(0.3)
            assert not waiting.done()
        assert await waiting == 2


async def leave_when_taken(container: Container) -> int:
    async with lease_of(container, wait=60) as lease:
        return lease.epoch


async def renewed(container: Container) -> Any:
    found = await container.mongo_service.database["lease-items"].find_one({})
    assert found is not None
    return found["expiry"]


async def write_number(container: Container, session: Any) -> None:
    await container.mongo_service.database["numbers"].insert_one({}, session=session)


@BY_ONE_DRIVER
async def test_a_lost_reply_takes_the_lease_once(container: Container, failing: Failing) -> None:
    """It is asked again, and the server repeats its answer."""
    await container.wait_for_init()
    async with failing("findAndModify", closeConnection=True), lease_of(container) as lease:
        assert lease.epoch == 1
    async with failing("findAndModify", times=4, closeConnection=True), lease_of(container) as lease:
        assert lease.epoch == 2


_FORGETS = """
import asyncio
from backtest_persist import Container, Settings
from tests.support.leases import lease_of

async def main():
    lease = lease_of(Container(Settings()))
    await lease.__aenter__()
    await lease.session()

asyncio.run(main())
asyncio.run(main())
"""


async def test_a_lease_is_given_up_with_its_event_loop(settings: Settings) -> None:
    """One whose block was never left, and whose container was never closed, is free for the next loop."""
    process = await start_python("-X", "dev", "-W", "error", "-c", _FORGETS, environment=settings_environment(settings))
    async with asyncio.timeout(HANG):
        assert await process.wait() == 0


_FORKS = """
import asyncio, os, sys
from backtest_persist import LeaseLostError, ioc
from tests.support.leases import lease_of

async def in_child(lease):
    assert "forked" in str(lease.lost())
    await lease.abandon_session()
    try:
        await lease.session()
        return 1
    except LeaseLostError:
        pass
    await lease.__aexit__(None, None, None)
    return 0

async def main():
    async with lease_of(ioc, duration=0.6) as lease:
        session = await lease.session()
        if not (child := os.fork()):
            os._exit(asyncio.run(in_child(lease)))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        await asyncio.sleep(0.8)
        assert await lease.session() is session
        assert lease.lost() is None
        found = await ioc.mongo_service.database["lease-items"].find_one({})
        assert found["owner"]["pid"] == os.getpid(), found
    await ioc.close()
    sys.exit(os.waitstatus_to_exitcode(status))

asyncio.run(main())
"""


async def test_a_forked_child_does_not_have_the_lease_of_its_parent(settings: Settings) -> None:
    """It can neither use it nor give it up, and does not renew it; its parent goes on."""
    process = await start_python("-c", _FORKS, environment=settings_environment(settings))
    async with asyncio.timeout(HANG):
        assert await process.wait() == 0


@BY_ONE_DRIVER
async def test_a_lease_outlasts_the_transaction_of_its_holder(
    settings: Settings, container: Container, failing: Failing
) -> None:
    """Also one that takes longer than the lease lasts, which cannot be renewed meanwhile."""
    async with open_container(settings) as other, lease_of(container, duration=0.5) as lease:
        await store(container, lease, 1)
        async with failing("commitTransaction", blockConnection=True, blockTimeMS=1500):
            storing = asyncio.create_task(store(container, lease, 2))
            with pytest.raises(LeaseHeldError):
                await lease_of(other, wait=1).__aenter__()
            await storing
        assert lease.lost() is None
    row = await container.signal_db_service.find_by_context("k0", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_a_fence_that_the_network_holds_back(settings: Settings, container: Container) -> None:
    """When it arrives, after its session was abandoned, it opens no transaction, which would lock the lease."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, holder), lease_of(holder) as lease:
        await acknowledged(lambda: store(holder, lease, 1))
        proxy.hold_back = b"startTransaction"
        with pytest.raises(StoreUnavailableError):
            await store(holder, lease, 2)
        proxy.hold_back = b""
        await acknowledged(lease.session)  # it waits until the one before is abandoned
        proxy.released.set()
        await asyncio.sleep(0.2)
        leases = container.mongo_service.database["lease-items"]
        async with asyncio.timeout(2 * slowness()):
            await leases.update_one({}, {"$set": {"x": 1}})
        await acknowledged(lambda: store(holder, lease, 3))


@BY_ONE_DRIVER
async def test_a_holder_that_is_paused_in_a_commit_for_longer_than_its_deadline(
    settings: Settings, container: Container, failing: Failing
) -> None:
    """It is told that its lease is lost, and not that the server is away."""
    await container.wait_for_init()
    async with started(settings.model_copy(update={"mongo_timeout_ms": 1500}), _COMMITTER) as process:
        assert process.stdin is not None
        async with failing("update", blockConnection=True, blockTimeMS=1000, times=2):
            process.stdin.write(b"\n")
            await asyncio.sleep(0.7)
            async with suspended(process.pid):
                lease = await lease_of(container, wait=20).__aenter__()
        assert await line(process) == "LeaseLostError"
        assert lease.epoch == 2
        await lease.__aexit__(None, None, None)


@BY_ONE_DRIVER
async def test_a_session_that_could_not_be_ended_at_once(container: Container, failing: Failing) -> None:
    """It is ended before the next one starts, which would meet its lock on the lease."""
    async with lease_of(container) as lease:
        session = await lease.session()
        await lease.state.start_transaction(session)
        await lease.fence(session)
        async with failing("killSessions", errorCode=11600):
            await lease.abandon_session()
            async with asyncio.timeout(2 * slowness()):
                assert await lease.session() is not session


@BY_ONE_DRIVER
async def test_a_successor_that_cannot_end_the_sessions_of_its_predecessor(
    settings: Settings, container: Container, failing: Failing
) -> None:
    """It gives the lease up, and leaves them recorded for the next one."""
    async with open_container(settings) as other, lease_of(container, duration=0.2) as lease:
        silence(lease)
        session = await lease.session()
        await asyncio.sleep(0.3)
        async with failing("killSessions", errorCode=11600, after=1):
            with pytest.raises(BacktestPersistError):
                await lease_of(other).__aenter__()
            await other.mongo_service.open_state().drain()
        found = await container.mongo_service.database["lease-items"].find_one({})
        assert found is not None
        assert (found["epoch"], found["owner"], found["sessionIds"]) == (2, None, [session.session_id["id"]])


@BY_ONE_DRIVER
async def test_a_session_that_could_not_be_recorded(
    container: Container, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt takes the same one, so that a server that refuses for long costs no sessions."""
    async with lease_of(container) as lease:
        start, sessions = lease.state.start_session, list[Any]()

        async def count() -> Any:
            sessions.append(await start())
            return sessions[-1]

        monkeypatch.setattr(lease.state, "start_session", count)
        async with failing("update", errorCode=2, times=2):
            for _ in range(2):
                with pytest.raises(BacktestPersistError):
                    await lease.session()
        assert [await lease.session()] == sessions
