"""What the two sides of a domain hold: ids in Redis, documents in MongoDB; nothing here creates an index."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from bson import ObjectId
from pydantic import ValidationError

from backtest_persist.connections import Document, RedisService, redis_errors
from backtest_persist.container import Container
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.db_service import DbService
from backtest_persist.core.keys import STORED, mode_word
from backtest_persist.core.listing import Batches, Listing
from backtest_persist.core.row import Context
from backtest_persist.errors import InvalidKeyError

__all__ = ("BATCH", "Domain", "Ids", "open_domains")

BATCH = 500
"""Ids or documents that are compared at once."""
SCAN_COUNT = 1000
SECONDS = 5.0
"""The deadline of one Redis command; ``CC_REDIS_TIMEOUT_MS`` is what a strategy can wait for, of one id."""

T = TypeVar("T")


class Ids:
    """The keys of the cache services in Redis, by their full names, whatever type they have."""

    def __init__(self, redis: RedisService) -> None:
        self._redis = redis
        self.prefix = _to_bytes(redis.key_prefix)

    async def ask(self, what: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Await one command; `StoreUnavailableError` for a fault, and after `SECONDS`."""
        with redis_errors(f"{what} of Redis"):
            try:
                async with asyncio.timeout(SECONDS):
                    return await call(self._redis.client)
            except TimeoutError:
                raise TimeoutError(f"no answer within {SECONDS:g} s") from None

    async def ping(self) -> None:
        """Ask for a sign of life."""
        await self.ask("PING", lambda client: client.ping())

    async def scan(self) -> AsyncGenerator[list[bytes]]:
        """Iterate over the names of all domains together, step by step of the server; a name can come twice."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self.prefix) + b"*_cache:*"
        cursor = 0
        while True:
            step = partial(_scan, cursor, pattern)
            cursor, names = await self.ask("SCAN", step)
            yield names
            if cursor == 0:
                return

    async def values(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys; None for one that is absent or no string."""
        return await self.ask("MGET", lambda client: client.mget(names)) if names else []

    async def present(self, names: Sequence[bytes]) -> set[bytes]:
        """Those of the keys that exist, as strings or otherwise."""
        if not names or not await self.ask("EXISTS", lambda client: client.exists(*names)):
            return set()
        found = await self.each("exists", names)
        return {name for name, exists in zip(names, found, strict=True) if exists}

    async def each(self, command: str, names: Sequence[bytes]) -> list[int]:
        """The answers to one command for each of the keys, in one round trip."""

        def call(client: Any) -> Awaitable[list[int]]:
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.execute_command(command, name)
            return pipeline.execute()

        return await self.ask(command.upper(), call)

    async def store(self, ids: Mapping[bytes, ObjectId]) -> None:
        """Set keys, whatever stood there."""
        if ids:
            values = {name: str(id) for name, id in ids.items()}
            await self.ask("MSET", lambda client: client.mset(values))

    async def remove(self, names: Sequence[bytes]) -> None:
        """Remove keys."""
        if names:
            await self.ask("UNLINK", lambda client: client.unlink(*names))


class Domain:
    """One domain seen from outside: its collection, and what its keys in Redis are called."""

    def __init__(self, container: Container, service: DbService[Any, Any]) -> None:
        self.name = service.collection.removesuffix("-items")
        self.service = service
        self._mongo = container.mongo_service
        cache: BaseMap = getattr(container, f"{self.name}_cache_service")
        self.namespace = _to_bytes(cache._get_item_key(""))  # pyright: ignore[reportPrivateUsage]
        self._context_type: type[Context] = service.context_type
        self._types = _types_in_key(self._context_type)

    def name_of(self, context: Context) -> bytes:
        """The full Redis key of a context."""
        return self.namespace + context.cache_key.encode()

    def context_of(self, name: bytes) -> Context | None:
        """The context that a full Redis key names, or None."""
        try:
            key = name.removeprefix(self.namespace).decode()
            *head, last = key.split(":", len(self._types) - 1)
            parts = [*(part.replace("%3A", ":").replace("%25", "%") for part in head), last]
            values = {field: _parse(part, self._types[field]) for field, part in zip(self._types, parts, strict=True)}
            context = self._context_type.model_validate(values, context=STORED)
        except (InvalidKeyError, ValueError):
            return None
        return context if context.cache_key == key else None

    def context_in(self, document: Mapping[str, Any]) -> Context | None:
        """The context of a document, or None if it lacks a part and nobody can look it up."""
        try:
            return self._context_type.model_validate(document, context=STORED)
        except (InvalidKeyError, ValidationError):
            return None

    async def count(self) -> int:
        """About how many documents there are."""
        async with self._mongo.operation(f"Count in {self.service.collection}"):
            return await self._mongo.collection(self.service.collection).estimated_document_count()

    def documents(self, query: Mapping[str, Any], **options: Any) -> Listing[list[Document]]:
        """Iterate over id and context of documents in batches, each of which is an operation."""
        collection = self._mongo.collection(self.service.collection)
        whole: dict[str, Any] = {"sort": [("_id", 1)], "resumable": True}
        projection = dict.fromkeys(self._context_type.wire_names(), 1)

        async def find() -> Batches:
            return Batches(collection, query, projection=projection, batch_size=BATCH, **(options or whole))

        operation = partial(self._mongo.operation, f"List in {collection.name}")
        return Listing(find, operation, lambda: self._mongo.has_client, list[Document])

    async def by_id(self, ids: Sequence[ObjectId]) -> dict[ObjectId, Document]:
        """The documents with these ids, by one query."""
        return {document["_id"]: document for document in await self._all({"_id": {"$in": ids}}, ids)}

    async def by_context(self, contexts: Sequence[Context]) -> dict[bytes, ObjectId]:
        """The ids of the documents of these contexts by full Redis key, by one query."""
        return self.named(await self._all({"$or": [context.to_filter() for context in contexts]}, contexts))

    def named(self, documents: Iterable[Document]) -> dict[bytes, ObjectId]:
        """The ids of documents by the full Redis key of their context; one that no look-up can find is left out."""
        return {
            self.name_of(context): document["_id"]
            for document in documents
            if isinstance(document["_id"], ObjectId) and (context := self.context_in(document)) is not None
        }

    async def _all(self, query: Mapping[str, Any], wanted: Sequence[Any]) -> list[Document]:
        if not wanted:
            return []
        async with aclosing(self.documents(query)) as batches:
            return [document async for batch in batches for document in batch]


def open_domains(container: Container) -> list[Domain]:
    """The fifteen domains of a container."""
    return [Domain(container, service) for service in container.db_services]


def _types_in_key(context_type: type[Context]) -> dict[str, Any]:
    """The types of the fields of a context in the order of its key, which each domain spells out."""
    types: dict[str, Any] = {name: field.annotation for name, field in context_type.model_fields.items()}
    sample: dict[str, Any] = {name: {str: name, bool: True, int: 0}[kind] for name, kind in types.items()}
    example = context_type.model_construct(None, **sample)
    fields = {{str: name, bool: mode_word(True), int: "0"}[kind]: name for name, kind in types.items()}
    return {fields[part]: types[fields[part]] for part in example.cache_key.split(":")}


def _scan(cursor: int, pattern: bytes, client: Any) -> Awaitable[tuple[int, list[bytes]]]:
    return client.scan(cursor, match=pattern, count=SCAN_COUNT)


def _parse(text: str, kind: Any) -> str | bool | int:
    if kind is bool:
        return text == mode_word(True)
    return int(text) if kind is int else text


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
