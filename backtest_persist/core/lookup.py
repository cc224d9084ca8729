"""Lookup: the cache-first, verified read. Whether an id of Redis is a hit is decided here, and nowhere else."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from bson import ObjectId

from backtest_persist.connections import Document, MongoState
from backtest_persist.core.batching import Batcher, Call
from backtest_persist.core.id_index import IdIndex
from backtest_persist.core.listing import Finder
from backtest_persist.core.off_loop import by_size
from backtest_persist.core.row import Context, Row
from backtest_persist.core.schema import Schema
from backtest_persist.errors import BacktestPersistError, InvalidPayloadError

__all__ = ("Lookup", "Stats")

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)

_MAX_IN_FLIGHT = 2
_MAX_UNKNOWN = 16


@dataclass
class Stats:
    """Counts what a db service has done since it was built, for reports; no timings."""

    reads: int = 0
    """Reads of any kind: by context, by filter, lists."""
    lookups: int = 0
    """Reads by context, which ask the cache first."""
    hits: int = 0
    """Lookups for which the process or Redis knew the right id."""
    writes: int = 0
    """Documents written."""


class Lookup(Batcher[C, R | None], Generic[C, R]):
    """Answers reads by context in one event loop; those that wait at the same time share their commands."""

    def __init__(self, schema: Schema[C, R], state: MongoState, ids: IdIndex, stats: Stats, *, max_size: int) -> None:
        super().__init__(
            self._send_batch,
            max_in_flight=_MAX_IN_FLIGHT,
            max_size=max_size,
            timeout=state.seconds,
            timed_out=lambda context: state.timed_out(schema.operation("find", context)),
            limit=state.limit,
        )
        self._schema = schema
        self._state = state
        self._ids = ids
        self._stats = stats
        self.finder = Finder(schema.of(state))

    def size_of(self, item: C) -> int:
        """Return how large a document probably is, so that few large ones are asked for at once."""
        return self.finder.mean_size or 0

    @property
    def max_size(self) -> int:
        """How many documents are asked for at once: a few as long as nobody knows how large they are."""
        return self._max_size if self.finder.mean_size is not None else _MAX_UNKNOWN

    async def _send_batch(self, calls: Sequence[Call[C, R | None]], seconds: float) -> Sequence[Call[C, R | None]]:
        """Answer calls by one find of ids; those that this process does not know are asked of Redis by one command."""
        keys = [call.item.cache_key for call in calls]
        contexts = {key: call.item for key, call in zip(keys, calls, strict=True)}
        operation = self._schema.operation("find", calls[0].item if len(calls) == 1 else None)
        try:
            async with self._state.deadline(operation, seconds, cut=False):
                documents, hits = await self.documents(contexts)
                rows = await by_size(self.size_of(calls[0].item) * len(calls), self._rows, keys, documents)
        except BacktestPersistError as error:
            for call in calls:
                call.fail(error.copy())
            return ()
        for key, call, row in zip(keys, calls, rows, strict=True):
            self._stats.hits += key in hits
            if isinstance(row, InvalidPayloadError):
                call.fail(row)
            else:
                call.resolve(row)
        return ()

    def _rows(self, keys: Sequence[str], documents: Mapping[str, Document]) -> list[R | InvalidPayloadError | None]:
        """Build a row for each caller."""
        rows: list[R | InvalidPayloadError | None] = []
        for key in keys:
            document = documents.get(key)
            try:
                rows.append(None if document is None else self._schema.row_type.from_document(document))
            except InvalidPayloadError as error:
                rows.append(error)
        return rows

    async def documents(
        self, contexts: Mapping[str, C], fields: Set[str] | None = None
    ) -> tuple[dict[str, Document], Set[str]]:
        """Find the documents of contexts, or these fields of them, and tell for which keys the right id was known.

        The documents are by cache key. Redis is asked for the ids that this process does not know, and for those that
        have turned out to be wrong. Contexts to which no id leads are queried, and their ids put right in Redis.
        """
        projection = None if fields is None else [*self._schema.fields, *fields]
        recalled = known = self._ids.recall(contexts)
        if len(recalled) < len(contexts):
            known = recalled | await self._ids.get_many([key for key in contexts if key not in recalled])
        hits = await self._hits(contexts, known, projection)
        if len(hits) == len(contexts):
            return hits, hits.keys()
        if wrong := {key: id for key, id in recalled.items() if key not in hits}:
            asked = await self._ids.get_many(list(wrong))
            self._ids.drop(wrong)  # which Redis may have as well
            other = {key: id for key, id in asked.items() if id != wrong[key]}
            hits |= await self._hits(contexts, other, projection)
        filters = {key: context.to_filter() for key, context in contexts.items() if key not in hits}
        if not filters:
            return hits, hits.keys()
        keys: dict[tuple[object, ...] | None, str] = {tuple(filter.values()): key for key, filter in filters.items()}
        documents = await self.finder.by_each(list(filters.values()), projection)
        by_values = [(self._schema.values_in(document), document) for document in documents]
        found = {keys[values]: document for values, document in by_values if values in keys}
        await self._ids.remember_many([(key, document["_id"]) for key, document in found.items()])
        return hits | found, hits.keys()

    async def _hits(
        self, contexts: Mapping[str, C], ids: Mapping[str, ObjectId], projection: Sequence[str] | None
    ) -> dict[str, Document]:
        """Find the documents with these ids: an id is believed only if the context of its document is the same."""
        keys = {id: key for key, id in ids.items()}
        documents = {keys[document["_id"]]: document for document in await self.finder.by_ids(list(keys), projection)}
        hits = {key: document for key, document in documents.items() if contexts[key].matches(document)}
        if len(hits) < len(ids):
            self._ids.drop({key: id for key, id in ids.items() if key not in hits})
        return hits
