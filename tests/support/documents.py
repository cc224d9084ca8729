"""Numbered documents of every domain, and everything that is stored in the servers of a test."""

from typing import Any

from pymongo import AsyncMongoClient

from backtest_persist import Container, Settings
from tests.support.cases import CASES, Case

__all__ = ("fill", "find", "key_of", "keys", "stored", "write")


def _context(case: Case, n: int) -> dict[str, Any]:
    field = next(name for name, value in case.context.items() if isinstance(value, str))
    return {**case.context, field: f"{case.context[field]}{n}"}


def key_of(container: Container, case: Case, n: int) -> bytes:
    """Return the Redis key of the n-th document of a domain."""
    service: Any = getattr(container, f"{case.domain}_db_service")
    key: str = service.context_type(**_context(case, n)).cache_key
    return f"{container.settings.redis_key_prefix}{case.domain}_cache:{key}".encode()


async def find(container: Container, case: Case, n: int) -> Any:
    """Find the row of the n-th document of a domain."""
    service: Any = getattr(container, f"{case.domain}_db_service")
    return await service.find_by_context(**_context(case, n))


async def write(container: Container, case: Case, n: int) -> str:
    """Write the n-th document of a domain, which puts its id into Redis, and return the id."""
    service: Any = getattr(container, f"{case.domain}_db_service")
    context = _context(case, n)
    if case.domain == "candle":
        del context["timestamp"]
        return (await service.create(*context.values(), *case.written)).id
    if case.domain == "log":
        await service.create_many([{**case.written[0], "id": context["entry_id"]}])
        return (await find(container, case, n)).id
    return (await service.upsert(*context.values(), *case.written)).id


async def fill(container: Container, count: int = 1) -> None:
    """Write `count` documents of every domain."""
    for case in CASES:
        for n in range(count):
            await write(container, case, n)


async def stored(settings: Settings) -> tuple[dict[str, Any], dict[bytes, Any]]:
    """Return every document and index in the database of a test, and all its keys in Redis as `keys` does."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        documents = {
            name: (await database[name].find().to_list(None), await database[name].index_information())
            for name in await database.list_collection_names()
        }
    return documents, await keys(settings)


async def keys(settings: Settings) -> dict[bytes, Any]:
    """Return every key of a test in Redis: its type, its value and whether it expires."""
    container = Container(settings)
    redis: Any = container.redis_service.client
    found = {
        name: (await redis.type(name), await redis.dump(name), await redis.ttl(name) >= 0)
        async for name in redis.scan_iter(match=f"{settings.redis_key_prefix}*", count=1000)
    }
    await container.close()
    return found
