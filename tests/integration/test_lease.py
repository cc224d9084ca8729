"""The lease of a run: taken, refused, waited for, renewed, given up and lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure
from pymongo.monitoring import CommandListener

from backtest_persist import (
    Container,
    InvalidKeyError,
    LeaseHeldError,
    LeaseLostError,
    Mode,
    Settings,
    SettingsError,
    StoreUnavailableError,
    export_dump,
)
from backtest_persist.core.lease_document import LeaseDocument
from backtest_persist.core.owner import Owner
from backtest_persist.operations import Level, examine
from tests.support.containers import open_container, with_uri
from tests.support.leases import commit, lease_of, silence, store
from tests.support.servers import private_mongod, wait_until
from tests.support.stopwatch import HANG

BY_ONE_DRIVER = pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
"""For what the server decides, or nobody."""


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[Container]:
    """A second container on the same servers; its clients are not those of the first one."""
    async with open_container(settings) as other:
        yield other


async def document(container: Container) -> dict[str, Any]:
    found = await container.mongo_service.database["lease-items"].find_one({})
    assert found is not None
    return found


async def test_a_lease_is_held_by_one_until_it_is_given_up(container: Container, other: Container) -> None:
    """The second one is refused, with the process that holds it; afterwards it is free at once, at the next epoch."""
    lease = lease_of(container)
    assert (lease.epoch, lease.lost()) == (0, None)
    async with lease:
        assert (lease.epoch, lease.lost()) == (1, None)
        found = await document(container)
        owner = Owner.here()
        with pytest.raises(LeaseHeldError, match="held by this process") as refused:
            await lease_of(other).__aenter__()
        assert (refused.value.host, refused.value.pid) == (owner.host, owner.pid)
        assert (refused.value.since, refused.value.collection) == (found["since"], "lease-items")
        with pytest.raises(LeaseHeldError):
            await lease.__aenter__()
        assert {name: found[name] for name in ("strategyName", "exchangeName", "symbol", "frameName", "mode")} == {
            "strategyName": "trend",
            "exchangeName": "binance",
            "symbol": "BTCUSDT",
            "frameName": "2024",
            "mode": "backtest",
        }
        assert (found["epoch"], found["sessionIds"], found["__v"]) == (1, [], 0)
        assert found["createDate"] == found["since"] <= found["updatedDate"] < found["expiry"]
        assert {**owner.model_dump(by_alias=True), "token": found["owner"]["token"]} == found["owner"]
        async with lease_of(other, mode=Mode.LIVE, frame=""), lease_of(other, mode="paper", frame=""):
            pass  # other runs
    with pytest.raises(LeaseLostError, match="given up"):
        await lease.session()
    for holder, epoch in ((lease_of(other), 2), (lease, 3)):
        async with holder:
            assert (holder.epoch, holder.lost()) == (epoch, None)
    indexes = await container.mongo_service.database["lease-items"].index_information()
    [unique] = [index["key"] for index in indexes.values() if index.get("unique")]
    assert [name for name, _ in unique] == ["strategyName", "exchangeName", "symbol", "frameName", "mode"]


@BY_ONE_DRIVER
async def test_names_and_times_that_cannot_be_are_refused(container: Container) -> None:
    """Before anything is sent; so is the use of a lease that was not taken."""
    for wrong in ({"strategy": ""}, {"symbol": {"$gt": ""}}, {"frame": None}, {"mode": "demo"}, {"mode": True}):
        with pytest.raises(InvalidKeyError):
            lease_of(container, **wrong)
    for wrong in ({"wait": -1}, {"wait": float("nan")}, {"duration": 0}, {"duration": float("inf")}):
        with pytest.raises(SettingsError, match="number of seconds"):
            lease_of(container, **wrong)
    with pytest.raises(LeaseLostError, match="async with"):
        await lease_of(container).session()
    assert await container.mongo_service.database.list_collection_names() == []


async def test_one_who_waits_gets_the_lease_when_it_is_free(container: Container, other: Container) -> None:
    """Or the error of one who does not wait, once the time is over."""
    async with lease_of(container):
        with pytest.raises(LeaseHeldError):
            await lease_of(other, wait=0.25).__aenter__()
        waiting = asyncio.create_task(lease_of(other, wait=30).__aenter__())
        cancelled = asyncio.create_task(lease_of(other, wait=30).__aenter__())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        cancelled.cancel()
    lease = await waiting
    assert lease.epoch == 2
    await lease.__aexit__(None, None, None)
    assert cancelled.cancelled()


@BY_ONE_DRIVER
async def test_of_many_who_come_first_one_gets_the_lease(settings: Settings, container: Container) -> None:
    """The others are refused, and nobody meets a duplicate key."""
    await container.wait_for_init()
    others = [Container(settings) for _ in range(4)]
    leases = [lease_of(holder) for holder in others for _ in range(4)]
    results = await asyncio.gather(*(lease.__aenter__() for lease in leases), return_exceptions=True)
    [held] = [result for result in results if not isinstance(result, BaseException)]
    assert {type(result) for result in results if result is not held} == {LeaseHeldError}
    assert held.epoch == 1
    await asyncio.gather(*(holder.close() for holder in others))


async def test_a_cancelled_attempt_leaves_no_lease_behind(container: Container, other: Container) -> None:
    """Whenever it is cancelled, the lease is free for others as soon as the attempt has ended."""
    await container.wait_for_init()
    for step in range(12):
        attempt = asyncio.create_task(lease_of(container).__aenter__())
        await asyncio.sleep(step * 0.0007)
        if not attempt.cancel():
            await (await attempt).__aexit__(None, None, None)
        await asyncio.wait([attempt])
        async with lease_of(other, wait=2):
            pass


async def test_a_lease_is_renewed_in_the_background(container: Container, other: Container) -> None:
    """It does not run out while it is held, however short it is, with and without transactions."""

    async def write(session: Any) -> None:
        await container.mongo_service.database["x"].insert_one({}, session=session)

    await container.mongo_service.database.create_collection("x")
    async with lease_of(container, duration=1.5) as lease:
        first = (await document(container))["expiry"]
        for _ in range(18):
            await asyncio.sleep(0.1)
            with pytest.raises(LeaseHeldError):
                await lease_of(other).__aenter__()
        for _ in range(18):
            await commit(lease, write)
            await asyncio.sleep(0.05)
        assert (await document(container))["expiry"] > first
        assert lease.lost() is None
    assert lease.epoch == 1


async def test_a_lease_that_is_not_renewed_runs_out(
    container: Container, other: Container, warned: Callable[[], list[str]]
) -> None:
    """Another one takes it, and the first one is told by whom, by its renewal or by a transaction."""
    async with lease_of(container, duration=0.3) as renewed, lease_of(container, duration=0.3, frame="f") as idle:
        silence(idle)
        await container.mongo_service.database["lease-items"].update_one(
            {"frameName": "2024"}, {"$set": {"owner.token": "of another one", "owner.pid": 77}, "$inc": {"epoch": 1}}
        )
        async with lease_of(other, wait=5, frame="f") as successor:
            assert successor.epoch == 2

            async def holds_no_more() -> bool:
                return renewed.lost() is not None

            await wait_until(holds_no_more)
            with pytest.raises(LeaseLostError, match="pid 77 on host") as lost:
                await renewed.session()
            assert (lost.value.pid, lost.value.collection) == (77, "lease-items")
            await successor.verify()
            assert idle.lost() is None
            with pytest.raises(LeaseLostError, match="took its lease"):
                await idle.verify()
            assert idle.lost() is not None
            assert warned() == ["lease.lost", "lease.lost"]
        assert (await container.mongo_service.database["lease-items"].count_documents({"owner": None})) == 1


@BY_ONE_DRIVER
async def test_the_time_is_that_of_the_server(settings: Settings) -> None:
    """No command on a lease has a time of this process, whose clock may be wrong."""
    commands: list[Mapping[str, Any]] = []

    class Listener(CommandListener):
        def started(self, event: Any) -> None:
            if "lease-items" in event.command.values():
                commands.append(event.command)

        def succeeded(self, event: Any) -> None: ...

        def failed(self, event: Any) -> None: ...

    def times(value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping | list):
            for item in (
                cast("dict[str, Any]", value).values() if isinstance(value, Mapping) else cast("list[Any]", value)
            ):
                yield from times(item)
        elif isinstance(value, datetime) or value == "$$NOW":
            yield value

    uri = settings.mongo_connection_string.get_secret_value()
    client = AsyncMongoClient[dict[str, Any]](uri, event_listeners=[Listener()])
    async with client, Container(settings, mongo_client=client) as container:
        async with lease_of(container, duration=0.3) as lease:
            await lease.session()
            await asyncio.sleep(0.3)
        names = [next(iter(command)) for command in commands]
        assert {"aggregate", "findAndModify", "update"} <= set(names)
        assert {time for command in commands for time in times(command)} == {"$$NOW"}


@BY_ONE_DRIVER
async def test_each_fence_changes_the_document(settings: Settings) -> None:
    """Also in the same ms as the one before: the server locks nothing for an update that changes nothing."""
    changed: list[int] = []

    class Listener(CommandListener):
        def started(self, event: Any) -> None: ...

        def succeeded(self, event: Any) -> None:
            if event.command_name == "update":
                changed.append(event.reply["nModified"])

        def failed(self, event: Any) -> None: ...

    uri = settings.mongo_connection_string.get_secret_value()
    client = AsyncMongoClient[dict[str, Any]](uri, event_listeners=[Listener()])
    async with client, Container(settings, mongo_client=client) as container, lease_of(container) as lease:
        session = await lease.session()
        await lease.state.start_transaction(session)
        changed.clear()
        for _ in range(100):
            await lease.fence(session)
        assert changed == [1] * 100
        await session.commit_transaction()
        assert (await document(container))["fences"] == 100


async def test_the_session_of_the_transactions_is_recorded_before_it_is_handed_out(container: Container) -> None:
    """All share it; another one follows when it is abandoned, which ends what it has locked."""
    collection = container.mongo_service.database["x"]
    await collection.insert_one({"_id": 1})
    async with lease_of(container) as lease:
        first, same = await asyncio.gather(lease.session(), lease.session())
        assert same is first
        assert (await document(container))["sessionIds"] == [first.session_id["id"]]
        await lease.state.start_transaction(first)
        await collection.update_one({"_id": 1}, {"$set": {"n": 1}}, session=first)
        await lease.abandon_session()
        second = await lease.session()
        assert (await document(container))["sessionIds"] == [second.session_id["id"]] != [first.session_id["id"]]
        async with asyncio.timeout(2):
            await collection.update_one({"_id": 1}, {"$set": {"n": 2}})
        await lease.state.start_transaction(second)
        await collection.update_one({"_id": 1}, {"$set": {"n": 3}}, session=second)
    async with asyncio.timeout(2):  # what was open was ended with the lease
        await collection.update_one({"_id": 1}, {"$set": {"m": 1}})
    assert await collection.find_one({}) == {"_id": 1, "n": 2, "m": 1}
    assert (await document(container))["sessionIds"] == []


@BY_ONE_DRIVER
async def test_a_session_that_is_abandoned_before_it_has_started(container: Container) -> None:
    """Those who wait for it get it, the next one follows, and the lease can be given up: nobody waits for the other."""
    async with asyncio.timeout(HANG), lease_of(container) as lease:
        starting = asyncio.create_task(lease.session())
        await asyncio.sleep(0)  # the task that starts it is made, and has not begun
        await lease.abandon_session()
        following = await lease.session()
        assert await starting is not following
        assert (await document(container))["sessionIds"] == [following.session_id["id"]]


@pytest.mark.parametrize("fence_first", [True, False])
async def test_a_successor_ends_the_open_transaction(container: Container, other: Container, fence_first: bool) -> None:
    """It writes at once what that has locked; its predecessor cannot commit, now or again."""
    collection = container.mongo_service.database["x"]
    await collection.insert_one({"_id": 1, "n": 0})

    async def write(session: Any) -> None:
        await collection.update_one({"_id": 1}, {"$set": {"n": "lost"}}, session=session)

    async with lease_of(container, duration=0.2) as lease:
        silence(lease)
        session = await lease.session()
        await lease.state.start_transaction(session)
        if fence_first:
            await lease.fence(session)
        await write(session)
        async with asyncio.timeout(4), lease_of(other, wait=3) as successor:
            await other.mongo_service.database["x"].update_one({"_id": 1}, {"$set": {"n": 1}})
            with pytest.raises(OperationFailure, match="aborted"):
                await (session.commit_transaction() if fence_first else lease.fence(session))
            await lease.abandon_session()
            with pytest.raises(LeaseLostError):
                await commit(lease, write)
            assert successor.lost() is None
            await commit(successor, lambda session: write_as(other, session))
    assert await collection.find_one({}) == {"_id": 1, "n": 2}


async def write_as(container: Container, session: Any) -> None:
    await container.mongo_service.database["x"].update_one({"_id": 1}, {"$set": {"n": 2}}, session=session)


@BY_ONE_DRIVER
@pytest.mark.parametrize("does", ["commits", "fences", "only writes"])
async def test_a_holder_that_wakes_up_while_it_is_succeeded(
    container: Container, other: Container, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """A transaction begun after the others were ended is ended as well, or has renewed the lease: never both."""
    collection = container.mongo_service.database["x"]
    await collection.insert_one({"_id": 1, "n": 0})
    kill = LeaseDocument.kill
    async with lease_of(container, duration=0.2) as lease:
        silence(lease)
        session = await lease.session()

        async def wake_up(self: LeaseDocument, ids: Any, seconds: float | None = None) -> None:
            monkeypatch.setattr(LeaseDocument, "kill", kill)
            await kill(self, ids, seconds)
            await lease.state.start_transaction(session)
            if does != "only writes":
                await lease.fence(session)
            await collection.update_one({"_id": 1}, {"$set": {"n": 1}}, session=session)
            if does == "commits":
                await session.commit_transaction()

        await asyncio.sleep(0.3)
        monkeypatch.setattr(LeaseDocument, "kill", wake_up)
        if does == "commits":
            with pytest.raises(LeaseHeldError):
                await lease_of(other).__aenter__()
            assert (await document(container))["epoch"] == 1
            return
        async with asyncio.timeout(4), lease_of(other) as successor:
            assert successor.epoch == 2
            async with asyncio.timeout(2):
                await other.mongo_service.database["x"].update_one({"_id": 1, "n": 0}, {"$set": {"n": 2}})
            with pytest.raises(OperationFailure, match="aborted"):
                await session.commit_transaction()
    assert await collection.find_one({}) == {"_id": 1, "n": 2}


@BY_ONE_DRIVER
async def test_a_lease_of_the_same_epoch_is_told_apart(container: Container) -> None:
    """As when its document was removed by hand, and another process has taken the lease for the first time."""
    async with lease_of(container, duration=0.2) as lease:
        silence(lease)
        await asyncio.sleep(0.3)
        leases = container.mongo_service.database["lease-items"]
        await leases.update_one({}, {"$set": {"owner.token": "another"}})
        with pytest.raises(LeaseLostError):
            await lease.verify()


@BY_ONE_DRIVER
async def test_all_who_give_a_lease_up_wait_until_it_is_free(
    settings: Settings, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of its block, while the container is being closed."""
    release = LeaseDocument.release

    async def release_slowly(self: LeaseDocument, *args: Any, **options: Any) -> None:
        await asyncio.sleep(0.2)
        await release(self, *args, **options)

    monkeypatch.setattr(LeaseDocument, "release", release_slowly)
    async with open_container(settings) as holder:
        lease = await lease_of(holder).__aenter__()
        await lease.session()
        closing = asyncio.create_task(holder.close())
        while lease.lost() is None and not closing.done() and not cast("Any", lease)._held._stopped.is_set():
            await asyncio.sleep(0)
        await lease.__aexit__(None, None, None)
        assert (await document(container))["owner"] is None
        await closing


async def test_closing_the_container_gives_its_leases_up(settings: Settings, container: Container) -> None:
    """They are free at once; the end of their blocks does nothing more."""
    async with open_container(settings) as holder, lease_of(holder) as lease:
        await holder.close()
        with pytest.raises(LeaseLostError, match="given up"):
            await lease.session()
        async with lease_of(container) as successor:
            assert successor.epoch == 2


@BY_ONE_DRIVER
async def test_a_container_with_other_settings_commits_no_more_under_its_lease(
    settings: Settings, container: Container
) -> None:
    """The lease is held in the former database; the error says what to do."""
    async with lease_of(container) as lease:
        await store(container, lease, 1)
        container.configure(settings)
        with pytest.raises(SettingsError, match="other settings"):
            await store(container, lease, 2)
        row = await container.signal_db_service.find_by_context("k0", "t", "e")
        assert row is not None
        assert row.payload == {"n": 1}
    async with lease_of(container) as lease:
        await store(container, lease, 3)


@BY_ONE_DRIVER
async def test_a_standalone_has_leases_without_transactions(settings: Settings, tmp_path: Path) -> None:
    """Taken, refused, renewed and given up as elsewhere; a session is a SettingsError that says what to do."""
    async with private_mongod(tmp_path) as base, open_container(with_uri(settings, f"{base}standalone")) as container:
        async with lease_of(container, duration=1) as lease:
            await asyncio.sleep(1.2)
            with pytest.raises(LeaseHeldError):
                await lease_of(container).__aenter__()
            with pytest.raises(SettingsError, match="--replSet rs0"):
                await lease.session()
        async with lease_of(container) as lease:
            assert (lease.epoch, lease.lost()) == (2, None)


@BY_ONE_DRIVER
async def test_operations_know_the_collection_of_leases(container: Container, tmp_path: Path) -> None:
    """It belongs to the package: it is prepared with the others, and neither unknown nor part of a dump."""
    await container.wait_for_init()
    async with lease_of(container):
        report = await export_dump(container, tmp_path)
        assert report.ignored == {}
        findings = {finding.check: finding for finding in (await examine(container)).findings}
        assert findings["mongodb.indexes.lease"].level is Level.OK
        assert findings["mongodb.indexes.lease"].text == "there"
        assert "mongodb.collections" not in findings


async def test_a_lease_that_could_not_be_given_up_is_free_for_its_own_process(
    container: Container, other: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was away when it ended; nobody has to wait for a holder who is known to have left."""

    async def away(self: object, seconds: float | None = None, **options: Any) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(LeaseDocument, "release", away)
        async with lease_of(container) as first:
            pass
    assert (await document(container))["owner"] is not None
    async with lease_of(other) as second:
        assert second.epoch == first.epoch + 1
