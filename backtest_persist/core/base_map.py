"""BaseMap: an asynchronous map of str to str that owns one namespace of Redis keys."""

from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from typing import ClassVar, cast

from backtest_persist.connections import RedisCommands, RedisService
from backtest_persist.core.keys import checked_name, to_int
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, SettingsError

__all__ = ("DEFAULT_TTL_EXPIRE_SECONDS", "ITERATOR_BATCH_SIZE", "BaseMap", "SeenKeys", "base_map")

DEFAULT_TTL_EXPIRE_SECONDS = 300
"""How long a key lives unless a map says otherwise, in seconds."""
ITERATOR_BATCH_SIZE = 100
"""How many keys an iteration asks Redis for at once."""


class BaseMap:
    """Maps str to str in one Redis namespace: the full key is ``connection_key:key``.

    Subclass it through `base_map`, or name the namespace in the class statement:
    ``class Prices(BaseMap, connection_key="prices", ttl_expire_seconds=60)``. Without an explicit `RedisService`
    it uses the process-wide container's. A namespace must not be the beginning of another one up to a colon:
    ``a`` and ``a:b`` would share keys.

    A namespace that is no usable name is an `InvalidKeyError`, a ttl that is no int a `SettingsError`, when the class
    is made. Every method raises `StoreUnavailableError` when Redis does not answer within ``CC_REDIS_TIMEOUT_MS``; what
    it was to change may be changed all the same, but not after a later write (see docs/reliability.md for the limits).
    What another program stored here under a name that is no text, or as a list or set, is removed by `clear`, and is
    not there for iteration and `size`.
    """

    connection_key: ClassVar[str] = ""
    ttl_expire_seconds: ClassVar[int] = DEFAULT_TTL_EXPIRE_SECONDS
    _bound: ClassVar[RedisService | None] = None
    on_change: Callable[[str | None], None] | None = None
    """Called with a key before its value is changed, or with None before all are; set by what remembers values."""

    def __init_subclass__(cls, *, connection_key: str | None = None, ttl_expire_seconds: int | None = None) -> None:
        super().__init_subclass__()
        if connection_key is not None:
            cls.connection_key = checked_name(connection_key, "connection_key")
        ttl = to_int(cls.ttl_expire_seconds if ttl_expire_seconds is None else ttl_expire_seconds)
        if ttl is None:
            raise SettingsError(f"{cls.__name__}: ttl_expire_seconds must be an int; -1 means no expiry.")
        cls.ttl_expire_seconds = ttl

    def __init__(self, redis: RedisService | None = None) -> None:
        if not self.connection_key:
            raise SettingsError("BaseMap has no namespace; subclass base_map('my-namespace') instead.")
        self._redis = redis

    @classmethod
    def bind(cls, redis: RedisService) -> None:
        """Set the service of the maps that are given none."""
        BaseMap._bound = redis

    @property
    def _service(self) -> RedisService:
        service = self._redis or BaseMap._bound
        if service is None:
            raise SettingsError("This map knows no Redis; import backtest_persist, or pass a RedisService.")
        return service

    def _command(self, operation: str) -> AbstractAsyncContextManager[RedisCommands]:
        return self._service.command(f"{operation} of the Redis namespace {self.connection_key!r}")

    def _changing(self, key: str | None) -> None:
        if self.on_change is not None:
            self.on_change(key)

    def _get_item_key(self, key: str) -> str:
        return f"{self._service.key_prefix}{self.connection_key}:{key}"

    async def set(self, key: str, value: str) -> None:
        """Store a value, with the ttl of the namespace if it has one; an empty key is an `InvalidKeyError`."""
        name, data = self._item(key, value)
        ttl = self.ttl_expire_seconds
        self._changing(key)
        async with self._command("SET") as redis:
            await redis.execute("SET", name, data, *(("EX", ttl) if ttl > 0 else ()))

    async def set_many(self, items: list[tuple[str, str]]) -> None:
        """Store several values in one round trip per thousand, after all were checked."""
        ttl = self.ttl_expire_seconds
        checked = [self._item(key, value) for key, value in items]
        for start in range(0, len(checked), 1000):
            batch = dict(checked[start : start + 1000])
            for key, _ in items[start : start + 1000]:
                self._changing(key)
            async with self._command("SET") as redis:
                if ttl <= 0:
                    await redis.execute("MSET", *chain.from_iterable(batch.items()))
                else:
                    await redis.execute_all([("SET", name, value, "EX", ttl) for name, value in batch.items()])

    def _item(self, key: str, value: str) -> tuple[str, bytes]:
        name = self._get_item_key(checked_name(key, "key"))
        if not isinstance(value, str):
            raise InvalidPayloadError(f"A map stores str, not {type(value).__name__}.")
        try:
            return name, _to_bytes(value)
        except UnicodeEncodeError:
            raise InvalidPayloadError("A map stores text; this value contains a lone surrogate.") from None

    async def get(self, key: str | None) -> str | None:
        """Return the value, or None when absent; a key of None is None without a command."""
        if key is None:
            return None
        name = self._get_item_key(checked_name(key, "key"))
        async with self._command("GET") as redis:
            return _to_str(cast("bytes | None", await redis.execute("GET", name)))

    async def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """Return the values of several keys by one command, None for those that are absent."""
        if not keys:
            return []
        if len(keys) == 1:
            return [await self.get(keys[0])]
        names = [self._get_item_key(checked_name(key, "key")) for key in keys]
        async with self._command("MGET") as redis:
            found = cast("list[bytes | None]", await redis.execute("MGET", *names))
        return [_to_str(value) for value in found]

    async def delete(self, key: str) -> None:
        """Remove a key; nothing happens when it is absent."""
        name = self._get_item_key(checked_name(key, "key"))
        self._changing(key)
        async with self._command("DEL") as redis:
            await redis.execute("DEL", name)

    async def has(self, key: str) -> bool:
        """Whether the key is there."""
        name = self._get_item_key(checked_name(key, "key"))
        async with self._command("EXISTS") as redis:
            return bool(await redis.execute("EXISTS", name))

    async def clear(self) -> None:
        """Remove every key of this namespace, in batches, and nothing else."""
        self._changing(None)
        async for batch in self._scan():
            async with self._command("UNLINK") as redis:
                await redis.execute("UNLINK", *batch)

    async def to_array(self) -> list[tuple[str, str]]:
        """Return all (key, value) pairs."""
        return [item async for item in self.iterate()]

    async def iterate(self) -> AsyncIterator[tuple[str, str]]:
        """Iterate over (key, value) pairs, each key once, in no particular order.

        Memory stays flat: a batch of 100 and eight bytes for each key seen. What changes during the iteration may
        or may not be seen, as with Redis ``SCAN``.
        """
        async for batch in self._unseen():
            async with self._command("MGET") as redis:
                values = cast("list[bytes | None]", await redis.execute("MGET", *batch))
            for key, value in zip(batch.values(), values, strict=True):
                if value is not None:
                    yield key, cast("str", _to_str(value))

    async def keys(self) -> AsyncIterator[str]:
        """Iterate over the keys, without the namespace, each once."""
        async for batch in self._unseen():
            for key in batch.values():
                yield key

    async def values(self) -> AsyncIterator[str]:
        """Iterate over the values."""
        async for _, value in self.iterate():
            yield value

    async def size(self) -> int:
        """Count the keys of this namespace."""
        count = 0
        async for batch in self._unseen():
            count += len(batch)
        return count

    async def _scan(self, kind: str | None = None) -> AsyncIterator[list[bytes]]:
        pattern = _escape_glob(self._get_item_key("")) + b"*"
        cursor = 0
        while True:
            async with self._command("SCAN") as redis:
                kinds = () if kind is None else ("TYPE", kind)
                answer = await redis.execute("SCAN", cursor, "MATCH", pattern, "COUNT", ITERATOR_BATCH_SIZE, *kinds)
                cursor, batch = int(answer[0]), cast("list[bytes]", answer[1])
            if batch:
                yield batch
            if cursor == 0:
                return

    async def _unseen(self) -> AsyncIterator[dict[bytes, str]]:
        """Full names and the keys in them: once each, of strings alone, and only what `get` would take."""
        seen = SeenKeys()  # SCAN repeats keys when the table shrinks under it
        start = len(_to_bytes(self._get_item_key("")))
        async for batch in self._scan("string"):
            fresh = {name: key for name in batch if seen.add(name) and (key := _to_key(name[start:]))}
            if fresh:
                yield fresh


def base_map(connection_key: str, ttl_expire_seconds: int = DEFAULT_TTL_EXPIRE_SECONDS) -> type[BaseMap]:
    """Return a map class bound to a Redis namespace, to be instantiated or subclassed; -1 means no expiry."""
    name = checked_name(connection_key, "connection_key")

    class BoundMap(BaseMap, connection_key=name, ttl_expire_seconds=ttl_expire_seconds):
        pass

    BoundMap.__name__ = BoundMap.__qualname__ = f"BaseMap[{name}]"
    return BoundMap


class SeenKeys:
    """Remembers which keys were seen in eight bytes each (a set of a million names takes a hundred megabytes).

    It keeps sorted 64-bit hashes; two of a million keys share one with a probability of 3e-8.
    """

    BUCKETS = 4096

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(self.BUCKETS)]

    def add(self, name: bytes) -> bool:
        """Remember a name; False if it was seen before."""
        digest = hash(name)
        bucket = self._buckets[digest % self.BUCKETS]
        place = bisect_left(bucket, digest)
        if place < len(bucket) and bucket[place] == digest:
            return False
        bucket.insert(place, digest)
        return True


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _to_str(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _to_key(data: bytes) -> str | None:
    try:
        return checked_name(data.decode(), "key")
    except (InvalidKeyError, UnicodeDecodeError):
        return None


def _escape_glob(text: str) -> bytes:
    return _to_bytes("".join(f"\\{char}" if char in "*?[]\\" else char for char in text))
