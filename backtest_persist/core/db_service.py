"""DbService: the queries that every domain answers; the rest is in the domain."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

from bson.int64 import Int64
from pymongo import ASCENDING

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.frames.frame import RowFrame
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.indexes import Index
from backtest_persist.core.keys import checked_limit, to_object_id
from backtest_persist.core.lookup import Stats
from backtest_persist.core.mongo_store import MongoStore
from backtest_persist.core.payload import Deferred, encode_or_defer, encode_payload
from backtest_persist.core.query import Filter, Sort
from backtest_persist.core.row import Context, Row, to_horizon, to_millis
from backtest_persist.core.schema import Schema
from backtest_persist.core.store import Store
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, SettingsError

__all__ = ("Content", "DbService", "Filter", "Page", "Sort")

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)

Content = tuple[C, dict[str, Any]]
"""The content of a write: a context, and the fields beside it by their wire names, payloads encoded."""


@dataclass(frozen=True)
class Page(Generic[R]):
    """One page of rows, and how many rows there are in all."""

    rows: RowList[R]
    total: int

    def to_frame(self) -> RowFrame:
        """Return the rows of this page as flat columns; see `RowList.to_frame`."""
        return self.rows.to_frame()


class DbService(Generic[C, R]):
    """Reads and writes the rows of one domain.

    A domain subclasses ``DbService[ItsContext, ItsRow]`` and names its `collection`; its methods build a context and
    call the store: ``self.store.find(context)``, ``self.store.upsert(context, fields)``.
    """

    collection: ClassVar[str] = ""
    secondary_indexes: ClassVar[tuple[Index, ...]] = ()
    default_sort: ClassVar[Sort] = (("createDate", ASCENDING),)
    context_type: type[C]
    row_type: type[R]

    def __init_subclass__(cls) -> None:
        """Take the types of context and row from ``DbService[Context, Row]``."""
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            types = get_args(base)
            if isinstance(get_origin(base), type) and len(types) == 2 and not any(map(_is_variable, types)):
                cls.context_type, cls.row_type = types

    def __init__(self, store: Store[C, R]) -> None:
        self._store = store

    @property
    def store(self) -> Store[C, R]:
        """The rows, in whichever backend they are kept."""
        return self._store

    @classmethod
    def schema(cls) -> Schema[C, R]:
        """Return the declaration of this service; `SettingsError` for a class without collection or types."""
        if not cls.collection or not hasattr(cls, "row_type"):
            raise SettingsError(
                f"{cls.__name__} does not say what it stores; write class {cls.__name__}(DbService[ItsContext, "
                "ItsRow]) with a collection, such as collection = 'my-items'."
            )
        return Schema(cls.collection, cls.context_type, cls.row_type, cls.secondary_indexes, cls.default_sort)

    @property
    def mongo_store(self) -> MongoStore[C, R]:
        """The store, for what MongoDB alone can answer; `SettingsError` for a service of another backend."""
        if not isinstance(self._store, MongoStore):
            problem = f"{type(self._store).__name__} answers no queries, as MongoDB does"
            raise SettingsError(f"{self.collection}: {getattr(self._store, 'no_queries', problem)}.")
        return self._store

    def operation(self, verb: str, *, write: bool = False) -> AbstractAsyncContextManager[None]:
        """Begin one operation on MongoDB: a deadline, translated errors, and closing the container waits for it."""
        return self.mongo_store.operation(verb, write=write)

    @property
    def stats(self) -> Stats:
        """Counts of what this service has done."""
        return self.mongo_store.stats

    async def wait_for_init(self) -> None:
        """Create and verify the indexes of this collection; done once per client, tried again after a failure.

        Raises `IndexConflictError` or `StoreUnavailableError`. Every operation does this by itself.
        """
        await self._store.wait_for_init()

    async def find_by_id(self, id: str) -> R | None:
        """Return the row with that id (24 hex digits), or None; a malformed id is None as well."""
        object_id = to_object_id(id)
        return None if object_id is None else await self.find_by_filter({"_id": object_id})

    async def find_by_filter(self, filter: Filter, sort: Sort | None = None) -> R | None:
        """Return the first row that matches a MongoDB filter, or None."""
        return await self.mongo_store.find_one(filter, sort)

    async def find_all(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        newest: int | None = None,
    ) -> RowList[R]:
        """Return all rows that match, oldest first unless sorted otherwise.

        `limit` is how many of them from the beginning, so without a `sort` the oldest. `newest` is how many of the
        newest, which come oldest first as well; it excludes `sort` and `limit`. There is no cap unless one is given.
        Documents that cannot be read are left out, and named in a warning.
        """
        if newest is not None:
            if sort is not None or limit is not None:
                raise InvalidKeyError(
                    f"{self.collection}: newest excludes sort and limit; sort=[('createDate', -1)] with a limit "
                    "gives the newest first.",
                    collection=self.collection,
                )
            return await self.mongo_store.find_newest(filter, checked_limit(newest, "newest"))
        return await self.mongo_store.find_all(filter, sort, limit=None if limit is None else checked_limit(limit))

    async def iterate(self, filter: Filter | None = None, *, sort: Sort | None = None) -> AsyncIterator[R]:
        """Iterate over all rows that match, holding one server batch in memory."""
        async with aclosing(self.mongo_store.rows(filter, sort)) as batches:
            async for rows in batches:
                for row in rows:
                    yield row

    async def paginate(
        self,
        filter: Filter | None = None,
        *,
        limit: int,
        offset: int = 0,
        sort: Sort | None = None,
    ) -> Page[R]:
        """Return `limit` rows from `offset` on, oldest first unless sorted otherwise, and how many match in all."""
        number, skip = checked_limit(limit), checked_limit(offset, "offset")
        rows = await self.mongo_store.find_all(filter, sort, limit=number, skip=skip)
        return Page(rows, await self.count(filter))

    async def count(self, filter: Filter | None = None) -> int:
        """Count the rows that match; without a filter all, by what the server keeps count of.

        That takes no time, however many there are. Right after a crash of the server it may be a little off;
        ``count({})`` counts.
        """
        return await self.mongo_store.count(filter)

    async def narrow_indexes(self) -> list[str]:
        """Name the unique indexes of an older release that are narrower than this domain's context."""
        return await self.mongo_store.narrow_indexes()

    async def drop_narrow_indexes(self) -> list[str]:
        """Drop the indexes `narrow_indexes` names, touching no document; returns their names."""
        return await self.mongo_store.drop_narrow_indexes()

    # --- for the domains ---

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self._store.allows_early_times()

    def to_millis(self, when: When | None) -> int:
        """Return a simulation time as ms since the epoch; `InvalidWhenError` for one that is no instant.

        In a run, None means the instant of the bar.
        """
        when = self._store.default_when() if when is None else when
        return to_millis(cast("When", when), self.allows_early_times)

    def wire_when(self, when: When | None) -> Int64:
        """Return a simulation time as it is stored: int64 ms; see `to_millis`."""
        return Int64(self.to_millis(when))

    def to_horizon(self, when: When | None) -> int:
        """Return the last ms a reader at `when` may see; without `when` that of the bar in a run, or no limit."""
        when = self._store.default_when() if when is None else when
        return to_horizon(when, self.allows_early_times)

    def encoded(self, payload: PayloadInput | None, context: C) -> dict[str, Any] | Deferred[Any] | None:
        """Return a payload as the store takes it, None for None; `InvalidPayloadError` for one that cannot be, exactly.

        A large one is `Deferred`: the store encodes it in a thread, and the caller leaves it unchanged meanwhile.
        """
        return encode_or_defer(partial(encode_payload, payload, lambda: f"{self.collection} ({context.describe()})"))

    def encoded_entry(self, payload: PayloadInput, context: C) -> dict[str, Any] | Deferred[Any]:
        """Return the payload of a list entry, which is never None, as the store takes it; see `encoded`."""
        encoded = self.encoded(payload, context)
        if encoded is None:
            what = f"{self.collection} ({context.describe()})"
            raise InvalidPayloadError(
                f"{what}: a payload is a mapping or a pydantic model, not None.",
                collection=self.collection,
                context=context.parts(),
            )
        return encoded


def _is_variable(type_: Any) -> bool:
    return isinstance(type_, TypeVar)
