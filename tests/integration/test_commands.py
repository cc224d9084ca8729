"""What an operation costs: the commands it sends to each server."""

from typing import Any, cast

from backtest_persist import Container, Settings
from tests.commands import Commands, listened_client


async def test_reads_and_writes_send_the_promised_commands(settings: Settings, driver: str) -> None:
    """A write is 1 findAndModify + 1 SET, a read 1 GET + 1 find, a miss 1 find and 1 SET more, an absence 1 find."""
    mongo = Commands()
    client = listened_client(settings, driver, mongo)
    container = Container(settings, mongo_client=client)
    db, redis = container.signal_db_service, cast("Any", container.redis_service.client)
    await db.wait_for_init()
    await container.redis_service.ping()

    async def redis_calls() -> dict[str, int]:
        statistics: dict[str, Any] = await redis.info("commandstats")
        return {name: statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "set")}

    async def sent(operation: Any) -> tuple[list[str], dict[str, int]]:
        mongo.names.clear()
        before = await redis_calls()
        await operation
        return mongo.names.copy(), {name: calls - before[name] for name, calls in (await redis_calls()).items()}

    key = ("s", "t", "e")
    assert await sent(db.find_by_context(*key)) == (["find"], {"get": 1, "set": 0})
    assert await sent(db.upsert(*key, {"n": 1})) == (["findAndModify"], {"get": 0, "set": 1})
    assert await sent(db.find_by_context(*key)) == (["find"], {"get": 1, "set": 0})
    await container.signal_cache_service.clear()
    assert await sent(db.find_by_context(*key)) == (["find"], {"get": 1, "set": 1})
    await container.signal_cache_service.set("e:t:s", "f" * 24)
    assert await sent(db.find_by_context(*key)) == (["find", "find"], {"get": 1, "set": 1})

    await container.close()
    closing = client.close()
    if closing is not None:
        await closing
