"""The ids that Redis holds: reading, setting and removing them by their full keys, many at a time."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from bson import ObjectId

from backtest_persist.connections import RedisService, redis_errors

__all__ = ("COMMAND_SECONDS", "CachedIds")

COMMAND_SECONDS = 5.0
"""The deadline of one command; ``CC_REDIS_TIMEOUT_MS`` is the time that a strategy can wait for one id."""
SCAN_COUNT = 1000

T = TypeVar("T")


class CachedIds:
    """The keys of all cache services in Redis, by their full names, whatever the type of their values."""

    def __init__(self, redis: RedisService) -> None:
        self._redis = redis
        self.prefix = redis.key_prefix.encode("utf-8", "surrogateescape")

    async def send(self, name: str, command: Callable[[Any], Awaitable[T]]) -> T:
        """Send one command; `StoreUnavailableError` when it fails or has no answer within `COMMAND_SECONDS`."""
        with redis_errors(f"{name} of Redis", endpoint=self._redis.endpoint):
            try:
                async with asyncio.timeout(COMMAND_SECONDS):
                    return await command(self._redis.client)
            except TimeoutError:
                raise TimeoutError(f"no answer within {COMMAND_SECONDS:g} s") from None

    async def ping(self) -> None:
        """Check that Redis answers."""
        await self.send("PING", lambda client: client.ping())

    async def scan(self) -> AsyncGenerator[list[bytes]]:
        """Iterate over the keys of all domains, one step of SCAN after another; a key can come twice."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self.prefix) + b"*_cache:*"
        cursor = 0
        while True:
            cursor, keys = await self.send("SCAN", partial(_scan, cursor, pattern))
            yield keys
            if cursor == 0:
                return

    async def values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys; None for a key that is absent or holds no string."""
        return await self.send("MGET", lambda client: client.mget(keys)) if keys else []

    async def existing(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys that exist, whatever the type of their values."""
        if not keys or not await self.send("EXISTS", lambda client: client.exists(*keys)):
            return set()
        found = await self.for_each("exists", keys)
        return {key for key, exists in zip(keys, found, strict=True) if exists}

    async def for_each(self, command: str, keys: Sequence[bytes]) -> list[int]:
        """Return the answers to one command for each key, in one round trip."""

        def send(client: Any) -> Awaitable[list[int]]:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command(command, key)
            return pipeline.execute()

        return await self.send(command.upper(), send)

    async def store(self, ids: Mapping[bytes, ObjectId]) -> None:
        """Set keys to ids, whatever they held."""
        if ids:
            values = {key: str(id) for key, id in ids.items()}
            await self.send("MSET", lambda client: client.mset(values))

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Remove keys."""
        if keys:
            await self.send("UNLINK", lambda client: client.unlink(*keys))


def _scan(cursor: int, pattern: bytes, client: Any) -> Awaitable[tuple[int, list[bytes]]]:
    return client.scan(cursor, match=pattern, count=SCAN_COUNT)
