"""The cost of an operation: the commands that it sends to each server."""

from typing import Any, cast

from backtest_persist import Settings
from tests.support.cases import CASES
from tests.support.commands import monitored_container


async def test_reads_and_writes_send_the_promised_commands(settings: Settings, driver: str) -> None:
    """A write is 1 findAndModify + 1 SET, a read 1 GET + 1 find, a miss 1 find and 1 SET more, an absence 1 find.

    This holds in every domain. A find after a hit is by ``_id``, any other by the fields of the context.
    """
    async with monitored_container(settings, driver) as (container, mongo):
        redis = cast("Any", container.redis_service.client)
        await container.redis_service.ping()

        async def redis_calls() -> dict[str, int]:
            statistics: dict[str, dict[str, Any]] = await redis.info("commandstats")
            return {name.removeprefix("cmdstat_"): counted["calls"] for name, counted in statistics.items()}

        async def sent(operation: Any) -> tuple[list[str], dict[str, int]]:
            mongo.names.clear()
            mongo.filters.clear()
            before = await redis_calls()
            await operation
            names = [f"{name} by {', '.join(filter)}" for name, filter in zip(mongo.names, mongo.filters, strict=True)]
            calls = {name: calls - before.get(name, 0) for name, calls in (await redis_calls()).items()}
            return names, {name: number for name, number in calls.items() if number and name != "info"}

        for case in CASES:
            db: Any = getattr(container, f"{case.domain}_db_service")
            cache: Any = getattr(container, f"{case.domain}_cache_service")
            by_context = ", ".join(case.index)
            await db.wait_for_init()

            def write(db: Any = db, args: tuple[Any, ...] = case.args, written: tuple[Any, ...] = case.written) -> Any:
                return db.upsert(*args, *written) if hasattr(db, "upsert") else db.create(*args[:-1], *written)

            assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1})
            for _ in range(2):
                assert await sent(write()) == ([f"findAndModify by {by_context}"], {"set": 1})
            assert await sent(db.find_by_context(*case.args)) == (["find by _id"], {"get": 1})
            row = await db.find_by_context(*case.args)
            await cache.clear()
            assert await sent(db.find_by_context(*case.args)) == ([f"find by {by_context}"], {"get": 1, "set": 1})
            await cache.set(row.cache_key, "f" * 24)
            assert await sent(db.find_by_context(*case.args)) == (
                ["find by _id", f"find by {by_context}"],
                {"get": 1, "set": 1},
            )
