"""One collection and the keys under which Redis holds the ids of its documents; nothing here creates an index."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import combinations, islice, pairwise
from typing import Any

from bson import ObjectId
from pydantic import ValidationError

from backtest_persist.connections import Document, Operation
from backtest_persist.container import Container
from backtest_persist.core.domain import Family
from backtest_persist.core.keys import STORED, mode_word
from backtest_persist.core.listing import Batches, Listing
from backtest_persist.core.row import Context, Row
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import InvalidKeyError
from backtest_persist.operations.domains import DomainServices, domain_services

__all__ = ("BATCH", "CachedCollection", "cached_collections")

BATCH = 500
"""The number of ids or documents that are compared at once."""
MOST_READINGS = 1000
"""The largest number of ways in which a key of the framework is read."""


class CachedCollection:
    """The collection of one domain, with the translation between its documents and their keys in Redis."""

    def __init__(self, container: Container, domain: DomainServices) -> None:
        self.name = domain.name
        self.is_cached = container.settings.candle_cache or not isinstance(domain.db, CandleDbService)
        """Whether the id of every document is meant to be in Redis."""
        self.context_type: type[Context] = domain.db.context_type
        self.row_type: type[Row] = domain.db.row_type
        self.is_series = domain.family is Family.SERIES
        """Whether it keeps very many small documents, which are not listed as such."""
        self.collection = domain.collection
        self._mongo = container.mongo_service
        namespace = domain.cache._get_item_key("")  # pyright: ignore[reportPrivateUsage]
        self.namespace = namespace.encode("utf-8", "surrogateescape")
        self._types = _types_in_key(self.context_type)

    def key_of(self, context: Context) -> bytes:
        """Return the full Redis key of a context."""
        return self.namespace + context.cache_key.encode()

    def context_of(self, key: bytes) -> Context | None:
        """Return the context that a full Redis key was made of, or None when no context has this key."""
        try:
            text = key.removeprefix(self.namespace).decode()
        except UnicodeDecodeError:
            return None
        *head, last = text.split(":", len(self._types) - 1)
        context = self._context([*(part.replace("%3A", ":").replace("%25", "%") for part in head), last])
        return context if context is not None and context.cache_key == text else None

    def plain_key_of(self, context: Context) -> bytes:
        """Return the key of a context as the framework spells it: its parts are joined as they are."""
        values = context.parts()
        parts = (mode_word(value) if isinstance(value, bool) else f"{value}" for value in map(values.get, self._types))
        return self.namespace + ":".join(parts).encode()

    def readings_of(self, key: bytes) -> list[Context]:
        """Return the contexts whose key this can be, in either spelling; a plain one can be read in several ways."""
        own = self.context_of(key)
        readings = [] if own is None else [own]
        try:
            words = key.removeprefix(self.namespace).decode().split(":")
        except UnicodeDecodeError:
            return []
        for cuts in islice(combinations(range(1, len(words)), len(self._types) - 1), MOST_READINGS):
            bounds = pairwise([0, *cuts, len(words)])
            context = self._context(":".join(words[start:end]) for start, end in bounds)
            if context is not None and self.plain_key_of(context) == key:
                readings.append(context)
        return readings

    def _context(self, parts: Iterable[str]) -> Context | None:
        """Return the context with these parts in the order of a key, or None when no context has them."""
        try:
            values = {field: _parse(part, self._types[field]) for field, part in zip(self._types, parts, strict=True)}
            return self.context_type.model_validate(values, context=STORED)
        except (InvalidKeyError, ValueError):
            return None

    def context_in(self, document: Mapping[str, Any]) -> Context | None:
        """Return the context of a document, or None when it lacks a part, so that no look-up can find it."""
        try:
            return self.context_type.model_validate(document, context=STORED)
        except (InvalidKeyError, ValidationError):
            return None

    async def count(self) -> int:
        """Return the number of documents, as estimated by the server."""
        async with self._mongo.operation(Operation("count", self.collection)):
            return await self._mongo.collection(self.collection).estimated_document_count()

    def documents(self, query: Mapping[str, Any], *, whole: bool = False, **options: Any) -> Listing[list[Document]]:
        """Iterate over documents, or only their ids and contexts, in batches, each of which is an operation."""
        collection = self._mongo.collection(self.collection)
        by_id: dict[str, Any] = {"sort": [("_id", 1)], "resumable": True}
        projection = None if whole else dict.fromkeys(self.context_type.wire_names(), 1)

        async def find() -> Batches:
            background = self._mongo.background
            return Batches(
                collection, query, projection=projection, batch_size=BATCH, background=background, **(options or by_id)
            )

        operation = partial(self._mongo.operation, Operation("list", collection.name))
        return Listing(find, operation, lambda: self._mongo.has_client, list[Document])

    async def by_id(self, ids: Sequence[ObjectId]) -> dict[ObjectId, Document]:
        """Return the documents with these ids, by one query."""
        return {document["_id"]: document for document in await self._find({"_id": {"$in": ids}}, ids)}

    async def by_key(self, keys: Sequence[bytes]) -> dict[bytes, ObjectId]:
        """Return the ids of the documents that these keys name, in either spelling, by full Redis key."""
        contexts = list(dict.fromkeys(context for key in keys for context in self.readings_of(key)))
        plain: dict[bytes, ObjectId] = {}
        own: dict[bytes, ObjectId] = {}
        for start in range(0, len(contexts), BATCH):
            filters = [context.to_filter() for context in contexts[start : start + BATCH]]
            documents = await self._find({"$or": filters}, filters)
            plain |= self.ids_by_key(documents, self.plain_key_of)
            own |= self.ids_by_key(documents)
        return {key: id for key, id in (plain | own).items() if key in set(keys)}

    def ids_by_key(
        self, documents: Iterable[Document], spell: Callable[[Context], bytes] | None = None
    ) -> dict[bytes, ObjectId]:
        """Return the ids of documents by full Redis key, without the documents that no look-up can find."""
        spell = spell or self.key_of
        return {
            spell(context): document["_id"]
            for document in documents
            if isinstance(document["_id"], ObjectId) and (context := self.context_in(document)) is not None
        }

    async def _find(self, query: Mapping[str, Any], wanted: Sequence[Any]) -> list[Document]:
        if not wanted:
            return []
        async with aclosing(self.documents(query)) as batches:
            return [document async for batch in batches for document in batch]


def cached_collections(container: Container) -> list[CachedCollection]:
    """Return the collections of all domains of a container."""
    return [CachedCollection(container, domain) for domain in domain_services(container)]


def _types_in_key(context_type: type[Context]) -> dict[str, Any]:
    """Return the types of the fields of a context in the order of its key, which each domain defines itself."""
    types: dict[str, Any] = {name: field.annotation for name, field in context_type.model_fields.items()}
    sample: dict[str, Any] = {name: {str: name, bool: True, int: 0}[kind] for name, kind in types.items()}
    example = context_type.model_construct(None, **sample)
    fields = {{str: name, bool: mode_word(True), int: "0"}[kind]: name for name, kind in types.items()}
    return {fields[part]: types[fields[part]] for part in example.cache_key.split(":")}


def _parse(text: str, kind: Any) -> str | bool | int:
    if kind is bool:
        return text == mode_word(True)
    return int(text) if kind is int else text
