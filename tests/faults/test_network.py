"""Faults of the network: replies that are late, lost or cut off, connections that hang or break."""

import asyncio
from collections import Counter

import pytest

from backtest_persist import (
    BacktestPersistError,
    Container,
    Settings,
    base_map,
)
from tests.support.proxy import DEADLINE, acknowledged, behind_proxy, mongo_proxy, redis_proxy, with_short_deadline
from tests.support.stopwatch import GRACE, Stopwatch, pauses, slowness, timed

WHEN = 1_700_000_000_000


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
        await proxy.wait_until_disconnected()


async def test_a_write_whose_reply_is_lost_is_applied_once(settings: Settings) -> None:
    """The driver repeats it, and the server knows that it has done it: a counter is one higher."""
    async with behind_proxy(settings) as (proxy, container):
        db = container.state_db_service
        await db.upsert("s", "b", {"n": 0}, 0)
        context = db.context_type(signal_id="s", bucket_name="b")
        for n in range(1, 4):
            proxy.drop_reply_to = b"findAndModify"
            row = await db.mongo_store.update(context, {"$inc": {"payload.n": 1}}, upsert=True)
            assert proxy.drop_reply_to == b""
            assert row is not None
            assert row.payload == {"n": n}
        proxy.drop_reply_to = b"update"
        rows = await asyncio.gather(*(db.upsert("s", f"b{n}", {"n": n}, 0) for n in range(20)))
        assert proxy.drop_reply_to == b""
        assert [row.payload for row in rows] == [{"n": n} for n in range(20)]
        assert await db.count() == 21


async def test_a_claim_whose_reply_is_lost_is_not_lost(settings: Settings) -> None:
    """The server remembers what it has answered: a new key and a revived one are the caller's, and nobody else's."""
    async with behind_proxy(settings) as (proxy, container):
        db = container.interval_db_service
        await db.upsert("b", "removed", {}, WHEN)
        await db.soft_remove("b", "removed")
        for key in ("new", "removed"):
            proxy.drop_reply_to = b"findAndModify"
            assert await db.claim("b", key, {"mine": True}, WHEN)
            assert proxy.drop_reply_to == b""
            proxy.drop_reply_to = b"findAndModify"
            assert not await db.claim("b", key, {"mine": False}, WHEN)
            assert proxy.drop_reply_to == b""
            row = await db.find_by_context("b", key)
            assert row is not None
            assert (row.payload, row.removed) == ({"mine": True}, False)


async def test_a_black_hole_keeps_the_deadline(settings: Settings) -> None:
    """Whatever is under way when mongod falls silent ends with a typed error in time; nothing is left open."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        signals, storage, candles = (
            container.signal_db_service,
            container.storage_db_service,
            container.candle_db_service,
        )
        await acknowledged(lambda: signals.upsert("s", "t", "e", {"n": 0}))
        await acknowledged(lambda: storage.upsert_many(True, [{"id": "a"}]))
        await acknowledged(candles.wait_for_init)
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


async def test_a_black_hole_in_front_of_redis_costs_one_deadline(settings: Settings) -> None:
    """Reads and writes go on with MongoDB alone."""
    async with redis_proxy(settings.model_copy(update={"redis_timeout_ms": 100})) as (proxy, through):
        container = Container(through)
        db = container.signal_db_service
        await db.upsert("s", "t", "e", {"n": 0})
        proxy.passing.clear()
        row, seconds = await timed(db.upsert("s", "t", "e", {"n": 1}))
        assert (row.payload, seconds < 0.1 + 0.25 * slowness()) == ({"n": 1}, True)
        found, seconds = await timed(db.find_by_context("s", "t", "e"))
        assert (found, seconds < 0.1 * slowness()) == (row, True)
        proxy.passing.set()
        await container.close()
        await proxy.wait_until_disconnected()


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
        await mongo.wait_until_disconnected()
        await redis.wait_until_disconnected()


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
        assert watch.seconds < 3 * slowness()
        await container.close()
        await mongo.wait_until_disconnected()
        await redis.wait_until_disconnected()


@pytest.mark.parametrize("passing", [True, False])
async def test_closing_leaves_the_loop_free(settings: Settings, passing: bool) -> None:
    """Closing connections to a slow or silent server takes bounded time, and blocks no other task of the event loop."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        await acknowledged(lambda: container.signal_db_service.upsert("s", "t", "e", {}))
        if not passing:
            proxy.passing.clear()
        closing = asyncio.create_task(timed(container.close()))
        longest = (await pauses(closing))[-1]
        _, seconds = await closing
        assert (longest < 0.25, seconds < (0.5 * slowness() if passing else DEADLINE + GRACE)) == (True, True), (
            longest,
            seconds,
        )


async def test_closing_many_clients_takes_as_long_as_closing_one(settings: Settings) -> None:
    """Each configuration has left one, and the server is silent to all."""
    async with behind_proxy(with_short_deadline(settings)) as (proxy, container):
        for n in range(5):
            container.configure(container.settings)
            await container.signal_db_service.upsert("s", "t", "e", {"n": n})
        proxy.passing.clear()
        with Stopwatch() as watch:
            await container.close()
        assert watch.seconds < 2 * DEADLINE + GRACE
