"""Writes that the network holds back until their callers have given up: a later write is never undone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from backtest_persist import Container, Settings, StoreUnavailableError, WriteOutcomeUnknownError
from backtest_persist.domains.signal import SignalRow
from tests.support.proxy import DEADLINE, Proxy, acknowledged, behind_proxy, with_short_deadline
from tests.support.servers import disable_sessions, wait_until
from tests.support.stopwatch import GRACE, Stopwatch

T = TypeVar("T")

GONE = {"late": WriteOutcomeUnknownError, "cancelled": asyncio.CancelledError}
"""How a caller stops waiting, and the error it gets."""


def write(container: Container, n: str) -> Coroutine[Any, Any, SignalRow]:
    """Write the one document of these tests."""
    return container.signal_db_service.upsert("s", "t", "e", {"n": n})


async def is_stored(settings: Settings, row: SignalRow) -> bool:
    """Whether another reader finds this row."""
    async with Container(settings) as witness:
        return await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def hold_back(proxy: Proxy, call: Coroutine[Any, Any, T], part: bytes = b"zombie") -> asyncio.Task[T]:
    """Begin a call whose command contains `part`, and hold the command back from the server."""
    proxy.hold_back = part
    calling = asyncio.create_task(call)
    await proxy.is_holding.wait()
    return calling


async def abandon(calling: asyncio.Task[Any], gone: str = "late") -> None:
    """Let a caller time out, or cancel it."""
    if gone == "cancelled":
        calling.cancel()
    with pytest.raises(GONE[gone]):
        await calling


async def some_turns() -> None:
    """Let the calls that were just submitted be sent."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_after_another(settings: Settings) -> None:
    """The caller of a write times out and writes again."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        await abandon(await hold_back(proxy, write(container, "zombie")))
        row = await acknowledged(lambda: write(container, "later"))
    assert await is_stored(settings, row)


@pytest.mark.parametrize("gone", GONE)
async def test_a_deletion(settings: Settings, gone: str) -> None:
    """`clear_bucket` is held back, and its caller times out or is cancelled, and writes."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        db = container.interval_db_service
        await acknowledged(lambda: db.upsert("b", "k", {"n": "old"}, 0))
        await abandon(await hold_back(proxy, db.clear_bucket("b"), b"delete"), gone)
        row = await acknowledged(lambda: db.upsert("b", "k", {"n": "later"}, 0))
    async with Container(settings) as witness:
        assert await witness.interval_db_service.find_by_context("b", "k") == row


@pytest.mark.parametrize("gone", ["late", "cancelled", "import"])
async def test_after_a_deletion_of_nothing(settings: Settings, gone: str) -> None:
    """A first write, or that of an import, is held back; `clear_bucket` finds nothing."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        db = container.interval_db_service
        await acknowledged(lambda: db.upsert("another", "k", {}, 0))
        if gone == "import":
            context = db.context_type(bucket="b", entry_key="k")
            fields = {"payload": {"n": "zombie"}, "removed": False, "when": 0}
            await abandon(await hold_back(proxy, db.mongo_store.restore([(context, fields)])))
        else:
            await abandon(await hold_back(proxy, db.upsert("b", "k", {"n": "zombie"}, 0)), gone)
        assert await acknowledged(lambda: db.clear_bucket("b")) == 0
    async with Container(settings) as witness:
        assert await witness.interval_db_service.count({"bucket": "b"}) == 0


async def test_after_the_end_of_its_loop(settings: Settings) -> None:
    """It is under way when `asyncio.run` ends; the next one writes."""
    async with behind_proxy(settings) as (proxy, container):
        under_way: list[asyncio.Task[object]] = []

        async def held_back() -> bool:
            return proxy.is_holding.is_set()

        async def first() -> None:
            await acknowledged(lambda: write(container, "old"))
            proxy.hold_back = b"zombie"
            under_way.append(asyncio.create_task(write(container, "zombie")))
            await wait_until(held_back)

        await asyncio.to_thread(lambda: asyncio.run(first()))
        assert under_way[0].cancelled()
        row = await asyncio.to_thread(lambda: asyncio.run(write(container, "later")))
    assert await is_stored(settings, row)


# --- connections that take no sessions ---


async def test_after_a_connection_took_no_sessions(settings: Settings) -> None:
    """The next write meets one, and goes on by another."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        await abandon(await hold_back(proxy, write(container, "zombie")))
        await container.signal_db_service.count()  # by a connection of its own
        assert disable_sessions(container)
        row = await acknowledged(lambda: write(container, "later"))
    assert await is_stored(settings, row)


async def test_before_the_end_of_a_connection_that_took_no_sessions(settings: Settings) -> None:
    """It is cut while it is left: writes go on by another, and closing closes."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        db = container.signal_db_service
        row = await acknowledged(lambda: write(container, "old"))
        assert disable_sessions(container)
        proxy.drop_reply_to = b"ping\0"
        await asyncio.gather(*(db.upsert("s", "t", f"e{n}", {"n": 1}) for n in range(3)))
        assert await db.count({"payload.n": 1}) == 3
        await abandon(await hold_back(proxy, write(container, "zombie")))
        await db.count()
        assert disable_sessions(container)
        proxy.drop_reply_to = b"ping\0"
        await container.close()
    assert await is_stored(settings, row)


# --- new settings ---


@pytest.mark.parametrize("gone", GONE)
async def test_after_new_settings(settings: Settings, gone: str) -> None:
    """The container is configured anew, and writes."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        await abandon(await hold_back(proxy, write(container, "zombie")), gone)
        container.configure(container.settings)
        row = await acknowledged(lambda: write(container, "later"))
    assert await is_stored(settings, row)


async def test_after_new_settings_while_it_closes(settings: Settings) -> None:
    """The container closes and is opened again meanwhile."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        await abandon(await hold_back(proxy, write(container, "zombie")))
        proxy.hold_back, proxy.delay = b"", 0.1
        closing = asyncio.create_task(container.close())
        await some_turns()
        container.configure(container.settings)
        row = await acknowledged(lambda: write(container, "later"))
        await closing
    assert await is_stored(settings, row)


async def test_after_new_settings_behind_another_write(settings: Settings) -> None:
    """A write is in flight and slow, and one behind it is held back: the next waits for both."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        db = container.signal_db_service
        await acknowledged(lambda: write(container, "old"))
        await db.upsert("s", "t", "another", {"n": "old"})
        proxy.delay = 0.15
        slow = asyncio.create_task(db.upsert("s", "t", "another", {"n": "slow"}))
        await some_turns()
        proxy.hold_back = b"zombie"
        behind = asyncio.create_task(write(container, "zombie"))
        await some_turns()
        container.configure(settings)
        row = await acknowledged(lambda: write(container, "later"))
        await asyncio.gather(slow, behind, return_exceptions=True)
        assert proxy.is_holding.is_set()
    assert await is_stored(settings, row)


async def test_new_settings_while_the_network_is_silent(settings: Settings) -> None:
    """An earlier write may still arrive, so the next ones fail within their deadline until the network is back.

    This holds as long as the driver believes in the server, which it checks by its heartbeat.
    """
    uri = settings.mongo_connection_string.get_secret_value()
    slowly = SecretStr(uri.replace("heartbeatFrequencyMS=500", "heartbeatFrequencyMS=10000"))
    async with behind_proxy(with_short_deadline(settings).model_copy(update={"mongo_connection_string": slowly})) as (
        proxy,
        container,
    ):
        await acknowledged(lambda: write(container, "old"))
        proxy.passing.clear()
        with pytest.raises(WriteOutcomeUnknownError):
            await write(container, "zombie")
        container.configure(with_short_deadline(settings))
        for _ in range(2):  # the server is silent to the second attempt as well
            with (
                Stopwatch() as watch,
                pytest.raises(StoreUnavailableError, match="other settings is still in progress"),
            ):
                await write(container, "early")
            assert watch.seconds < DEADLINE + GRACE
        proxy.passing.set()
        row = await acknowledged(lambda: write(container, "later"))
    assert await is_stored(settings, row)


async def test_new_settings_wait_for_the_collection_in_question_alone(settings: Settings) -> None:
    """A write of another service is still held back when the first one after them is acknowledged."""
    async with behind_proxy(settings) as (proxy, container):
        await container.state_db_service.upsert("s", "b", {"n": 0}, 0)
        writing = await hold_back(proxy, write(container, "zombie"))
        container.configure(settings)
        await container.state_db_service.upsert("s", "b", {"n": 1}, 0)
        assert not writing.done()
        proxy.released.set()
        await writing
        await asyncio.gather(container.close(), container.close(), container.close())


async def test_everything_is_cancelled_while_new_settings_are_waited_for(settings: Settings) -> None:
    """The next call begins anew."""
    async with behind_proxy(settings) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        others = asyncio.all_tasks()
        calls = [await hold_back(proxy, write(container, "zombie"))]
        container.configure(settings)
        calls.append(asyncio.create_task(write(container, "early")))
        await some_turns()
        for task in asyncio.all_tasks() - others:
            task.cancel()
        await asyncio.wait(calls)
        assert [call.cancelled() for call in calls] == [True, True]
        row = await acknowledged(lambda: write(container, "later"))
    assert await is_stored(settings, row)


async def test_new_settings_in_place_of_a_write_concern_that_nobody_can_meet(settings: Settings) -> None:
    """The write is in doubt; the one that settles it does not ask for more than the primary."""
    async with Container(settings) as container:
        await acknowledged(lambda: write(container, "old"))
        uri = settings.mongo_connection_string.get_secret_value()
        container.configure(settings.model_copy(update={"mongo_connection_string": SecretStr(f"{uri}&w=2")}))
        with pytest.raises(WriteOutcomeUnknownError):
            await write(container, "zombie")
        container.configure(settings)
        assert (await write(container, "later")).payload == {"n": "later"}


async def test_close_drains_one_of_other_settings_that_needs_its_index_again(settings: Settings) -> None:
    """Its collection was dropped meanwhile; it is stored, as the settings of before say."""
    async with behind_proxy(settings) as (proxy, container):
        await acknowledged(lambda: write(container, "old"))
        writing = await hold_back(proxy, write(container, "zombie"))
        async with Container(settings) as another:
            await another.mongo_service.database.drop_collection(container.signal_db_service.collection)
        container.configure(settings)
        closing = asyncio.create_task(container.close())
        await asyncio.sleep(0)
        proxy.released.set()
        await closing
        row = await writing
        assert row.payload == {"n": "zombie"}
    assert await is_stored(settings, row)
