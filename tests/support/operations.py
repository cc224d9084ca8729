"""What the tests of the operations commands share: documents of all domains, and a look at all that is stored."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any
from urllib.parse import quote

import anyio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from backtest_persist import Container, Settings
from backtest_persist.embedded_servers import _find
from tests.support.cases import CASES, Case

__all__ = ("fill", "find", "key_of", "keys", "private_mongod", "stored", "write")


def _context(case: Case, n: int) -> dict[str, Any]:
    field = next(name for name, value in case.context.items() if isinstance(value, str))
    return {**case.context, field: f"{case.context[field]}{n}"}


def key_of(container: Container, case: Case, n: int) -> bytes:
    """The Redis key of the n-th document of a domain."""
    service: Any = getattr(container, f"{case.domain}_db_service")
    key: str = service.context_type(**_context(case, n)).cache_key
    return f"{container.settings.redis_key_prefix}{case.domain}_cache:{key}".encode()


async def find(container: Container, case: Case, n: int) -> Any:
    """The row of the n-th document of a domain."""
    service: Any = getattr(container, f"{case.domain}_db_service")
    return await service.find_by_context(**_context(case, n))


async def write(container: Container, case: Case, n: int) -> str:
    """Write the n-th document of a domain, which puts its id into Redis; returns the id."""
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
    """Write so many documents of every domain."""
    for case in CASES:
        for n in range(count):
            await write(container, case, n)


async def stored(settings: Settings) -> tuple[dict[str, Any], dict[bytes, Any]]:
    """All that stands in the database of a test, indexes included, and all its keys in Redis with their expiry."""
    uri = settings.mongo_connection_string.get_secret_value()
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        documents = {
            name: (await database[name].find().to_list(None), await database[name].index_information())
            for name in await database.list_collection_names()
        }
    return documents, await keys(settings)


async def keys(settings: Settings) -> dict[bytes, Any]:
    """All keys of a test in Redis with type and value, and whether they expire."""
    container = Container(settings)
    redis: Any = container.redis_service.client
    found = {
        name: (await redis.type(name), await redis.dump(name), await redis.ttl(name) >= 0)
        async for name in redis.scan_iter(match=f"{settings.redis_key_prefix}*", count=1000)
    }
    await container.close()
    return found


@asynccontextmanager
async def private_mongod(directory: Path, *options: str) -> AsyncGenerator[str]:
    """A mongod with such options and nothing else, on a Unix socket; yields the URI up to the name of the database."""
    path = directory / "mongod.sock"
    command: Sequence[str] = (
        *(_find("mongod"), "--dbpath", str(directory), "--bind_ip", str(path), "--nounixsocket", "--quiet"),
        *("--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false", *options),
    )
    process = await anyio.open_process(command, env={"LC_ALL": "C"}, stdout=DEVNULL)
    uri = f"mongodb://{quote(str(path), safe='')}/"
    try:
        with anyio.fail_after(30):
            async with AsyncMongoClient[dict[str, Any]](
                f"{uri}?directConnection=true", serverSelectionTimeoutMS=500
            ) as client:
                while True:
                    try:
                        await client.admin.command("hello")
                        break
                    except PyMongoError:
                        assert process.returncode is None
        yield uri
    finally:
        process.kill()
        await process.wait()
