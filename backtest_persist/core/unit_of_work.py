"""Unit of work: the writes of several domains, kept in memory until they are stored together.

A `UnitOfWork` gives adapters db services whose stores write into it. They read what it holds, and what is stored where
it holds nothing. A `Committer` of the backend then stores its changes, all or none.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from bson import encode

from backtest_persist.core.change import Change, ChangeKind, Committer, Part
from backtest_persist.core.db_service import DbService
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.row import Context, Row
from backtest_persist.core.store import Store
from backtest_persist.errors import ClosedError

__all__ = ("BufferedStore", "Layer", "UnitOfWork", "join", "joined_layer", "joined_unit", "leave")

C = TypeVar("C", bound=Context)
D = TypeVar("D", bound=DbService[Any, Any])
R = TypeVar("R", bound=Row)

_NO_ID = "0" * 24


class Layer:
    """Changes of a unit that are discarded or stored together, by store and cache key; `below` it is what it joins."""

    def __init__(self, unit: "UnitOfWork", below: "Layer | None" = None) -> None:
        self.unit = unit
        self.below = below
        self._changes: dict[BufferedStore[Any, Any], dict[str, Change]] = {}

    def find(self, store: "BufferedStore[Any, Any]", key: str) -> Change | None:
        """Return the change of a context, if there is one."""
        changes = self._changes.get(store)
        return None if changes is None else changes.get(key)

    def of(self, store: "BufferedStore[Any, Any]") -> Mapping[str, Change]:
        """Return all changes of a store, by cache key."""
        return self._changes.get(store, {})

    def add(self, store: "BufferedStore[Any, Any]", key: str, change: Change) -> None:
        """Add a change; a context keeps the place of its first one."""
        changes = self._changes.setdefault(store, {})
        changes[key] = change.beside(changes.get(key))

    def absorb(self, later: "Layer") -> None:
        """Add the changes of a later layer."""
        for store, changes in later._changes.items():
            for key, change in changes.items():
                self.add(store, key, change)

    def size(self) -> int:
        """Return how many bytes the fields of the changes take."""
        return sum(len(encode(change.fields)) for changes in self._changes.values() for change in changes.values())

    def parts(self) -> list[Part]:
        """Return the changes, for a `Committer`."""
        return [
            Part(store.inner, [*changes.values()], remembers_ids=store.remembers_ids)
            for store, changes in self._changes.items()
            if changes
        ]


class UnitOfWork:
    """Keeps the writes of adapters until they are committed; gives them their db services, as `Services`.

    Within it a read sees the writes before it, and a row that it has read from the store is read once: as in a
    transaction, it stays the same until the next commit.
    """

    def __init__(
        self,
        services: Any,
        stores: Mapping[type[DbService[Any, Any]], "Callable[[Any, Any, UnitOfWork], BufferedStore[Any, Any]]"],
    ) -> None:
        self.services = services
        """The source of the db services of the backend itself."""
        self._kept = Layer(self)
        """The changes that the next commit stores."""
        self._open: Layer | None = None
        """The writes of the bar that is open."""
        self.layers: list[Layer] = [self._kept]
        """All changes, oldest first: those being stored, the kept ones, those of the bar, and those of inner blocks."""
        self.when: int | None = None
        """The instant, in ms UTC, that a `when` left out means."""
        self.generation = 0
        """How often what was read has been forgotten."""
        self.has_ended = False
        self.is_open = True
        """Whether it takes writes now; a run does within a bar alone."""
        self._calls = 0
        self._store_types = stores
        self._db_services: dict[type[DbService[Any, Any]], DbService[Any, Any]] = {}
        self._stores: list[BufferedStore[Any, Any]] = []

    def db_service(self, kind: type[D], /) -> D:
        """Return the db service of that class over this unit; `SettingsError` if the backend has no such domain."""
        if self.has_ended:
            raise ClosedError(
                "This unit of work has ended: await what writes in a checkpoint or a run before its end, and get the "
                "adapters of a run from the run that is open."
            )
        return self.buffered(kind)

    def buffered(self, kind: type[D]) -> D:
        """Return that db service, also after the end of the unit."""
        service = self._db_services.get(kind)
        if service is None:
            service = self._db_services[kind] = kind(self._store_over(self.services.db_service(kind), kind))
        return cast("D", service)

    def _store_over(self, inner: DbService[Any, Any], kind: type[DbService[Any, Any]]) -> "BufferedStore[Any, Any]":
        """Return a store that writes into this unit, over that of a db service of the backend."""
        create = self._store_types.get(kind, BufferedStore[Any, Any])
        rows = inner._store  # pyright: ignore[reportPrivateUsage]  # `store` is a verb of candles
        store = create(rows, kind.schema().row_type, self)
        self._stores.append(store)
        return store

    def change_of(self, store: "BufferedStore[Any, Any]", key: str) -> Change | None:
        """Return what the newest layer that this task sees says of a context."""
        for layer in self.seen():
            change = layer.find(store, key)
            if change is not None:
                return change
        return None

    def seen(self) -> Iterator[Layer]:
        """Iterate over the layers that this task sees, newest first: its block, those around it, what is being stored.

        Another block that is open at the same time may be discarded.
        """
        yield from self.uncommitted()
        yield from reversed(self.layers[: self.layers.index(self._kept)])

    def uncommitted(self) -> Iterator[Layer]:
        """Iterate over those of them whose changes will be stored together with what this task writes now."""
        layer = self._current()
        while layer is not None:
            yield layer
            layer = layer.below

    def _current(self) -> Layer | None:
        layer = joined_layer.get()
        if layer is None or layer.unit is not self or layer not in self.layers:
            layer = self._kept if self._open is None else self._open
        return layer

    def layer(self) -> Layer:
        """Return the layer into which this task writes now; `ClosedError` if it may not."""
        layer = joined_layer.get()
        if layer is None or layer.unit is not self:
            layer = self._kept if self._open is None else self._open
        self._check_open(layer)
        return layer

    def next_number(self) -> int:
        """Return the place of a call among those of this unit."""
        self._calls += 1
        return self._calls

    def _check_open(self, layer: Layer) -> None:
        if self.has_ended or not self.is_open or layer not in self.layers:
            raise ClosedError(
                "The adapters of a checkpoint write until its end, and those of a run within a bar: async with "
                "run.bar(when) as bar. What writes in a block has to be awaited in it. Nothing was written."
            )

    def add(self, store: "BufferedStore[Any, Any]", key: str, change: Change, layer: Layer | None = None) -> None:
        """Add a change to a layer that is still open, by default to that of this task."""
        if layer is None:
            layer = self.layer()
        else:
            self._check_open(layer)
        layer.add(store, key, change)

    def open_layer(self) -> None:
        """Begin a bar, whose writes can be discarded without those before them."""
        self._open = Layer(self, self._kept)
        self.layers.append(self._open)

    def inner_layer(self) -> Layer:
        """Begin a block in the one of this task, whose writes can be discarded by themselves."""
        layer = Layer(self, self.layer())
        self.layers.append(layer)
        return layer

    def keep_layer(self, layer: Layer | None = None) -> None:
        """Make the writes of a layer, by default of the bar, those of the layer it joins."""
        layer = self._open if layer is None else layer
        if self.has_ended or layer is None or layer.below is None or layer not in self.layers:
            raise ClosedError(
                "The bar or the checkpoint around this block has ended before it: await the block in it. Nothing of "
                "the block was written."
            )
        self.discard_layer(layer)
        layer.below.absorb(layer)

    def discard_layer(self, layer: Layer | None = None) -> None:
        """Discard the writes of a layer, by default of the bar, and of blocks in it that have not ended."""
        layer = self._open if layer is None else layer
        if layer is not None and layer in self.layers:
            self.layers.remove(layer)
            self._open = None if layer is self._open else self._open
            for inner in [other for other in self.layers if other.below is layer]:
                self.discard_layer(inner)

    def kept_bytes(self) -> int:
        """Return how many bytes the next commit stores, without the contexts."""
        return self._kept.size()

    def take_layer(self) -> Layer:
        """Return what was kept, to be stored with `commit`; what is kept from now on is apart from it."""
        taken, self._kept = self._kept, Layer(self)
        self.layers.insert(self.layers.index(taken) + 1, self._kept)
        if self._open is not None:
            self._open.below = self._kept
        return taken

    async def commit(self, committer: Committer, layer: Layer) -> None:
        """Store the changes of a layer, which are let go once they are stored, or that has failed."""
        try:
            await committer.commit(layer.parts())
        finally:
            self.layers.remove(layer)
            self.forget_reads()

    def forget_reads(self) -> None:
        """Ask the store again for what was read: others may have changed it."""
        self.generation += 1
        for store in self._stores:
            store.forget_reads()

    def end(self) -> None:
        """Take no writes any more."""
        self.has_ended = True


joined_units: ContextVar[tuple[UnitOfWork, ...]] = ContextVar("joined_units", default=())
"""The units that adapters write into, wherever they come from, the innermost first: each by those of its backend."""

joined_layer: ContextVar[Layer | None] = ContextVar("joined_layer", default=None)
"""The inner block of a unit that a task is in; None outside of one."""


def join(unit: UnitOfWork) -> Token[tuple[UnitOfWork, ...]]:
    """Let the adapters that this task calls write into a unit, until `leave`."""
    return joined_units.set((unit, *(other for other in joined_units.get() if other is not unit)))


def joined_unit(services: Any) -> UnitOfWork | None:
    """Return the unit that the adapters of these services write into."""
    for unit in joined_units.get():
        if unit.services is services:
            return unit
    return None


def leave(token: Token[tuple[UnitOfWork, ...]]) -> None:
    """End what `join` has begun."""
    with suppress(ValueError):  # in another context than it began
        joined_units.reset(token)


class BufferedStore(Generic[C, R]):
    """Keeps the writes of one domain in a unit of work, over the store of a backend; implements `core.store.Store`."""

    no_queries = "queries take no part in a bar or a checkpoint; send them by the db service of the container"
    """Why a db service over it answers no queries."""

    def __init__(self, inner: Store[C, R], row_type: type[R], unit: UnitOfWork) -> None:
        self.inner = inner
        self.unit = unit
        self.remembers_ids = True
        """Whether Redis is told the ids of new rows."""
        self._row_type = row_type
        self._reads: dict[str, R | None] = {}
        self._removable = "removed" in row_type.model_fields
        self._encoding: dict[str, asyncio.Event] = {}
        """The events that are set when the last large write of a row is encoded, by cache key, as long as it is not."""

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self.inner.allows_early_times()

    def default_when(self) -> int | None:
        """Return the instant that a `when` left out means, in ms UTC: that of the bar."""
        return self.unit.when

    async def wait_for_init(self) -> None:
        """Get the store of the backend ready."""
        await self.inner.wait_for_init()

    # --- reads ---

    async def find(self, context: C) -> R | None:
        """Return the row of a context, a tombstone included, or None."""
        key = context.cache_key
        change = self.unit.change_of(self, key)
        if change is not None and change.kind in (ChangeKind.REPLACE, ChangeKind.CLAIM):
            return self.row_of(change)
        stored = await self._stored(context, key)
        if change is None:
            return None if stored is None else stored.copied()
        if change.kind is ChangeKind.INSERT:
            return self.row_of(change) if stored is None else stored.copied()
        return None if stored is None else _removed(stored)

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> RowList[R]:
        """Return the rows whose fields of the context equal `selection`, oldest first, or the newest of them.

        Tombstones are left out.
        """
        changes: dict[str, Change] = {}
        for layer in reversed([*self.unit.seen()]):
            changes |= layer.of(self)
        changes = {key: change for key, change in changes.items() if _matches(change.context, selection)}
        if not changes:
            return await self.inner.select(selection, newest=newest)
        limit = None if newest is None else newest + len(changes)
        listed = {_key(row): row for row in await self.inner.select(selection, newest=limit)}
        others = {key: change for key, change in changes.items() if key not in listed}
        stored: Sequence[R | None] = [None] * len(others)
        if self._removable or newest is not None:  # a tombstone, or one that is not among the newest, has its place
            stored = await asyncio.gather(*(self._stored(cast("C", o.context), key) for key, o in others.items()))
        placed = {**listed, **{key: row for key, row in zip(others, stored, strict=True) if row is not None}}
        rows: list[tuple[datetime, R]] = []
        for key, row in placed.items():
            change = changes.get(key)
            if change is None or change.kind is ChangeKind.INSERT:
                rows.append((row.create_date, row))
            elif change.kind is not ChangeKind.REMOVE:
                rows.append((row.create_date, self.row_of(change)))
        if len(placed) > len(listed):
            rows.sort(key=lambda item: item[0])  # stable
        new = [self.row_of(change) for key, change in others.items() if key not in placed]
        living = [row for row in [*(row for _, row in rows), *new] if not getattr(row, "removed", False)]
        return RowList(living if newest is None else living[max(0, len(living) - newest) :], self._row_type)

    async def _stored(self, context: C, key: str) -> R | None:
        if key in self._reads:
            return self._reads[key]
        generation = self.unit.generation
        row = await self.inner.find(context)
        if generation == self.unit.generation and self.unit.is_open:  # between bars others may write as well
            self._reads[key] = row
        return row

    def forget_reads(self) -> None:
        """Forget what was read."""
        self._reads.clear()

    def row_of(self, change: Change) -> R:
        """Return the row that a change makes."""
        dates = {"_id": _NO_ID, "createDate": change.at, "updatedDate": change.at}
        return self._row_type.from_document({**change.context.to_filter(), **change.fields, **dates})

    # --- writes ---

    async def upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """Replace the row; returns it."""
        return self.row_of(await self._replace(context, fields))

    async def write(self, context: C, fields: Mapping[str, Any]) -> None:
        """Replace the row."""
        await self._replace(context, fields)

    async def _replace(self, context: C, fields: Mapping[str, Any]) -> Change:
        self._row_type.check_whole(context, fields)
        (change,) = await self._changes([(context, fields)], ChangeKind.REPLACE)
        return change

    async def _changes(self, writes: Sequence[tuple[C, Mapping[str, Any]]], kind: ChangeKind) -> list[Change]:
        """Add changes that set all fields; what is encoded in a thread keeps its place among the writes of its row."""
        layer, number = self.unit.layer(), self.unit.next_number()
        if not any(is_deferred(fields) for _, fields in writes):
            return self._add(writes, kind, layer, number)
        encoding = asyncio.Event()
        self._encoding |= {context.cache_key: encoding for context, _ in writes}
        try:
            encoded = await asyncio.to_thread(lambda: [encoded_fields(fields) for _, fields in writes])
            writes = [(context, fields) for (context, _), fields in zip(writes, encoded, strict=True)]
            return self._add(writes, kind, layer, number)
        finally:
            encoding.set()
            self._encoding = {key: other for key, other in self._encoding.items() if other is not encoding}

    async def _encoded(self, key: str) -> None:
        """Wait until what was written before is encoded, and has been added."""
        if (encoding := self._encoding.get(key)) is not None:
            await encoding.wait()

    def _add(
        self, writes: Sequence[tuple[C, Mapping[str, Any]]], kind: ChangeKind, layer: Layer, number: int
    ) -> list[Change]:
        changes = [Change(context, kind, fields, number=number) for context, fields in writes]
        for change in changes:
            key = change.context.cache_key
            before = self.unit.change_of(self, key)
            is_first = before is None or (before.kind is ChangeKind.INSERT and before.number > number)
            if is_first or kind is not ChangeKind.INSERT:
                self.unit.add(self, key, change, layer)
        return changes

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Replace the row unless there is one that is not a tombstone; True if this call did."""
        self._row_type.check_whole(context, fields)
        if is_deferred(fields):
            fields = await asyncio.to_thread(encoded_fields, fields)
        key, layer = context.cache_key, self.unit.layer()
        await self._encoded(key)
        before = self.unit.change_of(self, key)
        while True:
            row = await self.find(context)
            if row is not None and not getattr(row, "removed", False):
                return False
            if before is (now := self.unit.change_of(self, key)):
                break
            before = now
        is_own = any(found.find(self, key) for found in self.unit.uncommitted())
        kind = ChangeKind.REPLACE if is_own else ChangeKind.CLAIM
        self.unit.add(self, key, Change(context, kind, fields, number=self.unit.next_number()), layer)
        return True

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Replace or add many rows, after all were checked; returns how many this unit had not written before."""
        for context, fields in writes:
            self._row_type.check_whole(context, fields)
        new = sum(self.unit.change_of(self, context.cache_key) is None for context, _ in writes)
        await self._changes(writes, ChangeKind.REPLACE if replace else ChangeKind.INSERT)
        return new

    async def soft_remove(self, context: C) -> bool:
        """Turn the row into a tombstone; False when there is no row."""
        key, layer = context.cache_key, self.unit.layer()
        await self._encoded(key)
        row = await self.find(context)
        if row is None:
            return False
        change = self.unit.change_of(self, key)
        number = self.unit.next_number()
        if change is None or change.kind is ChangeKind.REMOVE:
            self.unit.add(self, key, Change(context, ChangeKind.REMOVE, number=number), layer)
        else:
            payload = change.fields.get("payload")
            if isinstance(payload, dict):
                payload = {**cast("dict[str, Any]", payload), "removed": True}
            removed = {**change.fields, "payload": payload, "removed": True}
            self.unit.add(self, key, Change(context, ChangeKind.REPLACE, removed, number=number), layer)
        return True


def _removed(row: R) -> R:
    payload: Any = getattr(row, "payload", None)
    if isinstance(payload, dict):
        payload = {**cast("dict[str, Any]", payload), "removed": True}
    return row.copied(payload=payload, removed=True)


def _key(row: Row) -> str:
    return cast("Context", row).cache_key


def _matches(context: Context, selection: Mapping[str, Any]) -> bool:
    return all(getattr(context, name) == value for name, value in selection.items())
