"""The cost of an operation: the commands that it sends to each server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from backtest_persist import Container, Registry, Settings
from backtest_persist.testing.subjects import SUBJECTS, Parts, Subject
from tests.support.cases import CASES, Case
from tests.support.commands import monitored_container

Sent = Callable[[Awaitable[Any]], Awaitable[tuple[list[str], dict[str, int]]]]


@asynccontextmanager
async def counted(settings: Settings, driver: str) -> AsyncGenerator[tuple[Container, Sent]]:
    """Build a container, and what tells which commands an operation has sent to MongoDB and to Redis."""
    async with monitored_container(settings, driver) as (container, mongo):
        redis = cast("Any", container.redis_service.client)
        await container.redis_service.ping()

        async def redis_calls() -> dict[str, int]:
            statistics: dict[str, dict[str, Any]] = await redis.info("commandstats")
            return {name.removeprefix("cmdstat_"): counted["calls"] for name, counted in statistics.items()}

        async def sent(operation: Awaitable[Any]) -> tuple[list[str], dict[str, int]]:
            mongo.names.clear()
            mongo.filters.clear()
            before = await redis_calls()
            await operation
            names = [
                f"{name} by {', '.join(filter)}" if filter else name
                for name, filter in zip(mongo.names, mongo.filters, strict=True)
            ]
            calls = {name: calls - before.get(name, 0) for name, calls in (await redis_calls()).items()}
            return names, {name: number for name, number in calls.items() if number and name != "info"}

        yield container, sent


def write(container: Container, case: Case) -> Awaitable[Any]:
    """Write the row of a case by its db service."""
    db: Any = getattr(container, f"{case.domain}_db_service")
    if hasattr(db, "upsert"):
        return db.upsert(*case.args, *case.written)
    return db.create(*case.args[:-1], *case.written)


async def test_without_ids_in_the_process_redis_is_asked_and_told_each_time(settings: Settings, driver: str) -> None:
    """A write is 1 findAndModify + 1 SET, a read 1 GET + 1 find, a miss 1 find and 1 SET more, an absence 1 find.

    This holds in every domain. A find after a hit is by ``_id``, any other by the fields of the context.
    """
    async with counted(settings.model_copy(update={"id_memory": 0}), driver) as (container, sent):
        for case in CASES:
            db: Any = getattr(container, f"{case.domain}_db_service")
            cache: Any = getattr(container, f"{case.domain}_cache_service")
            by_context = ", ".join(case.index)
            await db.wait_for_init()
            assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1})
            for _ in range(2):
                assert await sent(write(container, case)) == ([f"findAndModify by {by_context}"], {"set": 1})
            assert await sent(db.find_by_context(*case.args)) == (["find by _id"], {"get": 1})
            row = await db.find_by_context(*case.args)
            await cache.clear()
            assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1, "set": 1})
            await cache.set(row.cache_key, "f" * 24)
            assert await sent(db.find_by_context(*case.args)) == (
                ["find by _id", f"find by {by_context}"],
                {"get": 1, "set": 1},
            )


async def test_in_steady_state_a_read_is_one_find_and_a_write_one_find_and_modify(
    settings: Settings, driver: str
) -> None:
    """In every domain Redis is asked for an id once, and told of a new one once; then the process knows it.

    A wrong id costs one more find: then Redis is asked, and what it says is not tried again if it is the same.
    """
    async with counted(settings, driver) as (container, sent), counted(settings, driver) as (other, sent_by_other):
        for case in CASES:
            db, others = (getattr(services, f"{case.domain}_db_service") for services in (container, other))
            cache: Any = getattr(container, f"{case.domain}_cache_service")
            by_context = ", ".join(case.index)
            await db.wait_for_init()
            await others.wait_for_init()
            for _ in range(2):
                assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1})
            assert await sent(write(container, case)) == ([f"findAndModify by {by_context}"], {"set": 1})
            for _ in range(2):
                assert await sent(write(container, case)) == ([f"findAndModify by {by_context}"], {})
                assert await sent(db.find_by_context(*case.args)) == (["find by _id"], {})
            assert await sent_by_other(others.find_by_context(*case.args)) == (["find by _id"], {"get": 1})
            assert await sent_by_other(others.find_by_context(*case.args)) == (["find by _id"], {})
            assert await sent_by_other(write(other, case)) == ([f"findAndModify by {by_context}"], {})

            row = await db.find_by_context(*case.args)
            await cache.delete(row.cache_key)
            assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1, "set": 1})
            await container.mongo_service.collection(case.collection).delete_many({})
            finds = ["find by _id", f"find by {by_context}"]
            assert await sent(db.find_by_context(*case.args)) == (finds, {"get": 1})
            assert await sent_by_other(write(other, case)) == ([f"findAndModify by {by_context}"], {"set": 1})
            assert await sent(db.find_by_context(*case.args)) == (["find by _id"], {"get": 1})


async def test_adapter_writes_at_once_are_one_bulk_after_which_nothing_is_read(settings: Settings, driver: str) -> None:
    """In every domain whose adapter replaces one document; a process that comes later reads each id once."""
    async with counted(settings, driver) as (container, sent), counted(settings, driver) as (other, sent_by_other):
        first, second = Registry(container), Registry(other)
        for subject in (subject for subject in SUBJECTS if subject.kind not in ("list", "candles")):
            parts = [subject.numbered(number) for number in range(4)]

            async def write_all(
                persist: Registry, n: int, subject: Subject = subject, parts: list[Parts] = parts
            ) -> None:
                writes = (subject.write(persist, each, {"n": n + index}) for index, each in enumerate(parts))
                await asyncio.gather(*writes)

            for persist in (first, second):
                await asyncio.gather(*(subject.adapter(persist, each) for each in parts))
            assert await sent(write_all(first, 0)) == (["update"], {"mset": 1})
            for n in (10, 20):
                assert await sent(write_all(first, n)) == (["update"], {})
            ends = [await sent_by_other(write_all(second, n)) for n in (30, 40, 50)]
            assert ends == [(["update"], {}), (["update", "find by _id"], {"mget": 1}), (["update"], {})]
            assert await subject.read_many(first, parts) == [{"n": 50 + index} for index in range(4)]
