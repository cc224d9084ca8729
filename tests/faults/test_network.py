"""What a network does: replies that are late, lost or cut off, connections that hang or break."""

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import pytest
from pydantic import SecretStr

from backtest_persist import (
    BacktestPersistError,
    Container,
    Settings,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    base_map,
)
from tests.faults.proxy import Proxy, mongo_proxy, redis_proxy
from tests.faults.servers import take_sessions_from, until
from tests.faults.stopwatch import GRACE, Stopwatch, pauses, timed

DEADLINE = 1.0

T = TypeVar("T")


async def everybody_has_gone(proxy: Proxy) -> None:
    """No connection of a client is left."""
    async with asyncio.timeout(3):
        while proxy.connections:
            gc.collect()
            await asyncio.sleep(0.01)


async def acknowledged(write: Callable[[], Awaitable[T]]) -> T:
    """Write again until it is: who waits behind a write that is held back may run out of time."""
    async with asyncio.timeout(10):
        while True:
            with suppress(StoreUnavailableError, WriteOutcomeUnknownError):
                return await write()


async def some_turns() -> None:
    """Let what was called just now depart."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_cancelled_gets_never_mix_up_replies(settings: Settings) -> None:
    """200 GETs are cancelled while their replies are on the way; those that follow get their own."""
    async with redis_proxy(settings) as (proxy, through):
        container = Container(through)
        prices = base_map("prices")(container.redis_service)
        await prices.set_many([(f"k{n}", f"v{n}") for n in range(50)])
        proxy.delay = 0.002

        async def get(n: int) -> None:
            assert await prices.get(f"k{n % 50}") == f"v{n % 50}"

        for batch in range(10):
            calls = [asyncio.create_task(get(n)) for n in range(40)]
            await asyncio.wait(calls, timeout=0.001 * batch, return_when=asyncio.FIRST_COMPLETED)
            for call in calls[::2]:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert Counter(map(type, outcomes)).keys() <= {type(None), asyncio.CancelledError}
            assert outcomes[1::2] == [None] * 20
        proxy.delay = 0
        await asyncio.gather(*(get(n) for n in range(200)))
        await container.close()
        await everybody_has_gone(proxy)


async def test_a_write_whose_reply_is_lost_is_applied_once(settings: Settings) -> None:
    """The driver repeats it, and the server knows that it has done it: a counter is one higher."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        db = container.state_db_service
        await db.upsert("s", "b", {"n": 0}, 0)
        context = db.context_type(signal_id="s", bucket_name="b")
        for n in range(1, 4):
            proxy.cut = b"findAndModify"
            row = await db._find_and_update(context, {"$inc": {"payload.n": 1}}, upsert=True)
            assert proxy.cut == b""
            assert row is not None
            assert row.payload == {"n": n}
        proxy.cut = b"update"
        rows = await asyncio.gather(*(db.upsert("s", f"b{n}", {"n": n}, 0) for n in range(20)))
        assert proxy.cut == b""
        assert [row.payload for row in rows] == [{"n": n} for n in range(20)]
        assert await db.count() == 21
        await container.close()
        await everybody_has_gone(proxy)


async def test_a_black_hole_keeps_the_deadline(settings: Settings) -> None:
    """Whatever is under way when mongod falls silent ends with a typed error in time; nothing is left open."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        signals, storage, candles = (
            container.signal_db_service,
            container.storage_db_service,
            container.candle_db_service,
        )
        await signals.upsert("s", "t", "e", {"n": 0})
        await storage.upsert_many(True, [{"id": "a"}])
        await candles.wait_for_init()
        proxy.passing.clear()
        ends = await asyncio.gather(
            timed(signals.find_by_context("s", "t", "e")),
            timed(signals.upsert("s", "t", "e", {"n": 1})),
            timed(signals.find_all()),
            timed(storage.upsert_many(True, [{"id": "b"}])),
            timed(candles.find_range("s", "1m", "e", 0, 10)),
            timed(container.log_db_service.upsert("l", {})),
        )
        assert [end for end, _ in ends if not isinstance(end, BacktestPersistError)] == []
        assert [seconds for _, seconds in ends if seconds > DEADLINE + GRACE] == []
        proxy.passing.set()
        row = await signals.upsert("s", "t", "e", {"n": 2})
        assert await signals.find_by_context("s", "t", "e") == row
        await container.close()
        await everybody_has_gone(proxy)


async def test_a_black_hole_in_front_of_redis_costs_one_deadline(settings: Settings) -> None:
    """Reads and writes go on with MongoDB alone."""
    async with redis_proxy(settings.model_copy(update={"redis_timeout_ms": 100})) as (proxy, through):
        container = Container(through)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": 0})
        proxy.passing.clear()
        row, seconds = await timed(db.upsert("s", "t", "e", {"n": 1}))
        assert (row.payload, seconds < 0.35) == ({"n": 1}, True)
        found, seconds = await timed(db.find_by_context("s", "t", "e"))
        assert (found, seconds < 0.1) == (row, True)
        proxy.passing.set()
        await container.close()
        await everybody_has_gone(proxy)


async def test_broken_connections_are_replaced(settings: Settings) -> None:
    """Connections to both servers are reset again and again under load: no error, and every write is there."""
    async with mongo_proxy(settings) as (mongo, through), redis_proxy(through) as (redis, both):
        container = Container(both)
        db = container.signal_db_service
        await db.wait_for_init()
        done = asyncio.Event()

        async def work(task: int) -> int:
            n = 0
            while not done.is_set():
                n += 1
                await db.upsert("s", "t", f"e{task}", {"n": n})
                row = await db.find_by_context("s", "t", f"e{task}")
                assert row is not None
                assert row.payload == {"n": n}
            return n

        workers = [asyncio.create_task(work(task)) for task in range(4)]
        for _ in range(3):
            await db.upsert("s", "t", "between", {})
            redis.reset()
            mongo.reset()
        await db.upsert("s", "t", "between", {})
        done.set()
        numbers = await asyncio.gather(*workers)
        rows = await db.find_all({"exchange_name": {"$ne": "between"}}, sort=[("exchangeName", 1)])
        assert [row.payload for row in rows] == [{"n": n} for n in numbers]
        await container.close()
        await everybody_has_gone(mongo)
        await everybody_has_gone(redis)


async def test_a_slow_network_is_only_slow(settings: Settings) -> None:
    """50 ms each way to both servers: everything is right, and operations share their round trips."""
    async with mongo_proxy(settings) as (mongo, through), redis_proxy(through) as (redis, both):
        container = Container(both)
        db = container.signal_db_service
        await db.wait_for_init()
        mongo.delay = redis.delay = 0.05
        with Stopwatch() as watch:
            await asyncio.gather(*(db.upsert("s", "t", f"e{n}", {"n": n}) for n in range(50)))
            rows = await asyncio.gather(*(db.find_by_context("s", "t", f"e{n}") for n in range(50)))
        assert [row and row.payload for row in rows] == [{"n": n} for n in range(50)]
        assert watch.seconds < 3
        await container.close()
        await everybody_has_gone(mongo)
        await everybody_has_gone(redis)


@pytest.mark.parametrize("passing", [True, False])
async def test_closing_leaves_the_loop_free(settings: Settings, passing: bool) -> None:
    """The goodbye to a server that is far away, or silent, is bounded and holds up nobody else in the event loop."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        await container.signal_db_service.upsert("s", "t", "e", {})
        if not passing:
            proxy.passing.clear()
        closing = asyncio.create_task(timed(container.close()))
        longest = (await pauses(closing))[-1]
        _, seconds = await closing
        assert (longest < 0.25, seconds < (0.5 if passing else DEADLINE + GRACE)) == (True, True), (longest, seconds)
        proxy.passing.set()
        await everybody_has_gone(proxy)


async def test_a_write_that_comes_late_is_refused(settings: Settings) -> None:
    """A write is held back in the network, its caller gives up and writes again; then the first one arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": "zombie"})
        await proxy.holds.wait()
        row = await db.upsert("s", "t", "e", {"n": "later"})
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


GONE = {"late": WriteOutcomeUnknownError, "cancelled": asyncio.CancelledError}
"""Why a caller waits no more, and what it is told."""


@pytest.mark.parametrize("gone", GONE)
async def test_a_deletion_that_comes_late_is_refused(settings: Settings, gone: str) -> None:
    """`clear_bucket` is held back in the network, its caller waits no more and writes; then the deletion arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.interval_db_service
        await db.upsert("b", "k", {"n": "old"}, 0)
        proxy.held = b"delete"
        clearing = asyncio.create_task(db.clear_bucket("b"))
        await proxy.holds.wait()
        if gone == "cancelled":
            clearing.cancel()
        with pytest.raises(GONE[gone]):
            await clearing
        row = await acknowledged(lambda: db.upsert("b", "k", {"n": "later"}, 0))
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.interval_db_service.find_by_context("b", "k") == row


@pytest.mark.parametrize("gone", GONE)
async def test_a_write_that_comes_after_a_deletion_of_nothing_is_refused(settings: Settings, gone: str) -> None:
    """A first write is held back in the network, `clear_bucket` finds nothing; then the write arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.interval_db_service
        await db.upsert("another", "k", {}, 0)
        proxy.held = b"zombie"
        writing = asyncio.create_task(db.upsert("b", "k", {"n": "zombie"}, 0))
        await proxy.holds.wait()
        if gone == "cancelled":
            writing.cancel()
        with pytest.raises(GONE[gone]):
            await writing
        assert await acknowledged(lambda: db.clear_bucket("b")) == 0
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.interval_db_service.count({"bucket": "b"}) == 0


async def test_a_write_that_comes_after_its_connection_took_no_sessions_is_refused(settings: Settings) -> None:
    """A write is held back in the network, the next meets a connection that takes none; then the first one arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        writing = asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"}))
        await proxy.holds.wait()
        with pytest.raises(WriteOutcomeUnknownError):
            await writing
        await db.count()  # by a connection of its own
        assert take_sessions_from(container)
        row = await acknowledged(lambda: db.upsert("s", "t", "e", {"n": "later"}))
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_the_first_write_after_new_settings_waits_for_its_own_collection_alone(settings: Settings) -> None:
    """A write of another service is still held back in the network when it is acknowledged."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        await container.state_db_service.upsert("s", "b", {"n": 0}, 0)
        proxy.held = b"zombie"
        writing = asyncio.create_task(container.signal_db_service.upsert("s", "t", "e", {"n": "zombie"}))
        await proxy.holds.wait()
        container.configure(settings)
        await container.state_db_service.upsert("s", "b", {"n": 1}, 0)
        assert not writing.done()
        proxy.released.set()
        await writing
        await asyncio.gather(container.close(), container.close(), container.close())
        await everybody_has_gone(proxy)


async def test_new_settings_while_the_network_is_silent(settings: Settings) -> None:
    """What was sent before may still arrive: the next write waits in time, with an error, until it cannot any more.

    As long as the driver does not take the server for gone, which it finds out by its heartbeat.
    """
    bounded = settings.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})
    async with mongo_proxy(bounded) as (proxy, through):
        uri = through.mongo_connection_string.get_secret_value().replace(
            "heartbeatFrequencyMS=500", "heartbeatFrequencyMS=10000"
        )
        container = Container(through.model_copy(update={"mongo_connection_string": SecretStr(uri)}))
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.passing.clear()
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": "zombie"})
        container.configure(bounded)
        for _ in range(2):  # the server is silent to the second attempt as well
            with Stopwatch() as watch, pytest.raises(StoreUnavailableError, match="other settings is still under way"):
                await db.upsert("s", "t", "e", {"n": "early"})
            assert watch.seconds < DEADLINE + GRACE
        proxy.passing.set()
        row = await acknowledged(lambda: db.upsert("s", "t", "e", {"n": "later"}))
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_new_settings_while_several_writes_are_under_way(settings: Settings) -> None:
    """One is in the air and slow, and one behind it is held back in the network: the next waits for both."""
    async with mongo_proxy(settings) as (proxy, through):
        bounded = through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})
        container = Container(bounded)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        await db.upsert("s", "t", "another", {"n": "old"})
        proxy.delay = 0.15
        slow = asyncio.create_task(db.upsert("s", "t", "another", {"n": "slow"}))
        await some_turns()
        proxy.held = b"zombie"
        behind = asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"}))
        await some_turns()
        container.configure(settings)
        row = await acknowledged(lambda: db.upsert("s", "t", "e", {"n": "later"}))
        await asyncio.gather(slow, behind, return_exceptions=True)
        assert proxy.holds.is_set()
        proxy.delay = 0
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_everything_is_cancelled_while_new_settings_are_waited_for(settings: Settings) -> None:
    """The next call begins anew."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        others = asyncio.all_tasks()
        calls = [asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"}))]
        await proxy.holds.wait()
        container.configure(settings)
        calls.append(asyncio.create_task(db.upsert("s", "t", "e", {"n": "early"})))
        await some_turns()
        for task in asyncio.all_tasks() - others:
            task.cancel()
        await asyncio.wait(calls)
        assert [call.cancelled() for call in calls] == [True, True]
        row = await db.upsert("s", "t", "e", {"n": "later"})
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_close_drains_a_write_of_other_settings_that_needs_its_index_again(settings: Settings) -> None:
    """Its collection was dropped meanwhile; it is stored, as the settings of before say."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        writing = asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"}))
        await proxy.holds.wait()
        async with Container(settings) as another:
            await another.mongo_service.database.drop_collection(db.collection)
        container.configure(settings)
        closing = asyncio.create_task(container.close())
        await asyncio.sleep(0)
        proxy.released.set()
        await closing
        assert (await writing).payload == {"n": "zombie"}
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.count() == 1


async def test_a_connection_that_breaks_while_it_is_left(settings: Settings) -> None:
    """It takes no sessions, and is cut: writes go on by another, and closing closes."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": 0})
        assert take_sessions_from(container)
        proxy.cut = b"ping\0"
        await asyncio.gather(*(db.upsert("s", "t", f"e{n}", {"n": 1}) for n in range(3)))
        assert await db.count({"payload.n": 1}) == 3
        proxy.held = b"zombie"
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": "zombie"})
        await db.count()
        assert take_sessions_from(container)
        proxy.cut = b"ping\0"
        await container.close()
        proxy.released.set()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        row = await witness.signal_db_service.find_by_context("s", "t", "e")
        assert row is not None
        assert row.payload == {"n": 0}


@pytest.mark.parametrize("gone", GONE)
async def test_a_write_that_comes_after_new_settings_is_refused(settings: Settings, gone: str) -> None:
    """A write is held back in the network, the container is configured anew and writes; then the first one arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        bounded = through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})
        container = Container(bounded)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        writing = asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"}))
        await proxy.holds.wait()
        if gone == "cancelled":
            writing.cancel()
        with pytest.raises(GONE[gone]):
            await writing
        container.configure(bounded)
        row = await acknowledged(lambda: db.upsert("s", "t", "e", {"n": "later"}))
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_a_write_that_comes_after_the_end_of_its_loop_is_refused(settings: Settings) -> None:
    """A write is held back in the network when `asyncio.run` ends; the next one writes, then the first one arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through)
        db = container.signal_db_service
        under_way: list[asyncio.Task[object]] = []

        async def held_back() -> bool:
            return proxy.holds.is_set()

        async def first() -> None:
            await db.upsert("s", "t", "e", {"n": "old"})
            proxy.held = b"zombie"
            under_way.append(asyncio.create_task(db.upsert("s", "t", "e", {"n": "zombie"})))
            await until(held_back)

        await asyncio.to_thread(lambda: asyncio.run(first()))
        assert under_way[0].cancelled()
        row = await asyncio.to_thread(lambda: asyncio.run(db.upsert("s", "t", "e", {"n": "later"})))
        proxy.released.set()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_new_settings_in_place_of_a_write_concern_that_nobody_can_meet(settings: Settings) -> None:
    """The write is in doubt; the one that settles it does not ask for more than the primary."""
    async with Container(settings) as container:
        await container.signal_db_service.upsert("s", "t", "e", {"n": 0})
        uri = settings.mongo_connection_string.get_secret_value()
        container.configure(settings.model_copy(update={"mongo_connection_string": SecretStr(f"{uri}&w=2")}))
        with pytest.raises(WriteOutcomeUnknownError):
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
        container.configure(settings)
        assert (await container.signal_db_service.upsert("s", "t", "e", {"n": 2})).payload == {"n": 2}


async def test_closing_many_clients_takes_as_long_as_closing_one(settings: Settings) -> None:
    """Each configuration has left one, and the server is silent to all."""
    async with mongo_proxy(settings) as (proxy, through):
        bounded = through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})
        container = Container(bounded)
        for n in range(5):
            container.configure(bounded)
            await container.signal_db_service.upsert("s", "t", "e", {"n": n})
        proxy.passing.clear()
        with Stopwatch() as watch:
            await container.close()
        assert watch.seconds < 2 * DEADLINE + GRACE
        proxy.passing.set()
        await everybody_has_gone(proxy)


async def test_new_settings_while_it_closes_wait_as_well(settings: Settings) -> None:
    """A write is in doubt, the container closes and is opened again meanwhile; what it writes then stays."""
    async with mongo_proxy(settings) as (proxy, through):
        bounded = through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)})
        container = Container(bounded)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": "old"})
        proxy.held = b"zombie"
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": "zombie"})
        proxy.held, proxy.delay = b"", 0.1
        closing = asyncio.create_task(container.close())
        await some_turns()
        container.configure(bounded)
        row = await acknowledged(lambda: db.upsert("s", "t", "e", {"n": "later"}))
        await closing
        proxy.delay = 0
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.signal_db_service.find_by_context("s", "t", "e") == row


async def test_an_import_that_comes_after_a_bucket_was_cleared_is_refused(settings: Settings) -> None:
    """A first write is held back in the network; the bucket is cleared, then it arrives."""
    async with mongo_proxy(settings) as (proxy, through):
        container = Container(through.model_copy(update={"mongo_timeout_ms": int(DEADLINE * 1000)}))
        db = container.interval_db_service
        await db.upsert("other", "k", {}, 0)
        proxy.held = b"zombie"
        context = db.context_type(bucket="b", entry_key="k")
        with pytest.raises(WriteOutcomeUnknownError):
            await db.restore([(context, {"payload": {"n": "zombie"}, "removed": False, "when": 0})])
        assert await acknowledged(lambda: db.clear_bucket("b")) == 0
        proxy.released.set()
        await container.close()
        await everybody_has_gone(proxy)
    async with Container(settings) as witness:
        assert await witness.interval_db_service.count({"bucket": "b"}) == 0
