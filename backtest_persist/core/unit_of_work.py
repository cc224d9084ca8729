"""Unit of work: the writes of several domains, kept in memory until they are stored together.

A `UnitOfWork` gives adapters db services whose stores write into it. They read what it holds, and what is stored where
it holds nothing. A `Committer` of the backend then stores its changes, all or none.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from backtest_persist.core.change import Change, ChangeKind, Committer, Part
from backtest_persist.core.db_service import DbService
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.row import Context, Row
from backtest_persist.core.store import Store
from backtest_persist.errors import ClosedError

__all__ = ("BufferedStore", "Layer", "UnitOfWork", "joined_unit")

C = TypeVar("C", bound=Context)
D = TypeVar("D", bound=DbService[Any, Any])
R = TypeVar("R", bound=Row)

_NO_ID = "0" * 24


class Layer:
    """Changes that are discarded or stored together, by store and cache key."""

    def __init__(self) -> None:
        self._changes: dict[BufferedStore[Any, Any], dict[str, Change]] = {}

    def __bool__(self) -> bool:
        return any(self._changes.values())

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
        changes[key] = change.after(changes.get(key))

    def absorb(self, later: "Layer") -> None:
        """Add the changes of a later layer."""
        for store, changes in later._changes.items():
            for key, change in changes.items():
                self.add(store, key, change)

    def parts(self) -> list[Part]:
        """Return the changes, for a `Committer`."""
        return [
            Part(store.inner, [*changes.values()], remembers_ids=store.remembers_ids)
            for store, changes in self._changes.items()
            if changes
        ]


class UnitOfWork:
    """Keeps the writes of adapters until they are committed; gives them their db services, as `Services`.

    Within it a read sees the writes before it, and what it has read from the store is read once: as in a transaction,
    it stays the same until the next commit. `layers` are oldest first; writes go into the last one.
    """

    def __init__(
        self,
        services: Any,
        buffered: Mapping[type[DbService[Any, Any]], Callable[[Any, "UnitOfWork"], DbService[Any, Any]]],
    ) -> None:
        self.services = services
        """What gives the db services of the backend itself."""
        self.layers: list[Layer] = [Layer()]
        self.when: int | None = None
        """The instant, in ms UTC, that a `when` left out means."""
        self.generation = 0
        """How often what was read has been forgotten."""
        self.has_ended = False
        self.is_open = True
        """Whether it takes writes now; a run does within a bar alone."""
        self._buffered = buffered
        self._db_services: dict[type[DbService[Any, Any]], DbService[Any, Any]] = {}
        self._stores: list[BufferedStore[Any, Any]] = []

    def db_service(self, kind: type[D], /) -> D:
        """Return the db service of that class over this unit; `SettingsError` if the backend has no such domain."""
        if self.has_ended:
            raise ClosedError(
                "This unit of work has ended: await what writes in a checkpoint or a run before its end, and get the "
                "adapters of a run from the run that is open."
            )
        service = self._db_services.get(kind)
        if service is None:
            inner = self.services.db_service(kind)
            create = self._buffered.get(kind)
            service = kind(self.store_over(inner.store, kind)) if create is None else create(inner, self)
            self._db_services[kind] = service
        return cast("D", service)

    def store_over(self, inner: Store[C, R], kind: type[DbService[C, R]]) -> "BufferedStore[C, R]":
        """Return a store that writes into this unit, over one of the backend."""
        store = BufferedStore(inner, kind.schema().row_type, self)
        self._stores.append(store)
        return store

    def change_of(self, store: "BufferedStore[Any, Any]", key: str) -> Change | None:
        """Return what the newest layer that knows a context says of it."""
        for layer in reversed(self.layers):
            change = layer.find(store, key)
            if change is not None:
                return change
        return None

    def add(self, store: "BufferedStore[Any, Any]", key: str, change: Change) -> None:
        """Add a change to the newest layer."""
        if self.has_ended or not self.is_open:
            raise ClosedError(
                "The adapters of a checkpoint write until its end, and those of a run within a bar: async with "
                "run.bar(when) as bar. Nothing was written."
            )
        self.layers[-1].add(store, key, change)

    def open_layer(self) -> None:
        """Begin writes that can be discarded without those before them."""
        self.layers.append(Layer())

    def keep_layer(self) -> None:
        """Make the writes of the newest layer those of the one before it."""
        later = self.layers.pop()
        self.layers[-1].absorb(later)

    def discard_layer(self) -> None:
        """Discard the writes of the newest layer."""
        self.layers.pop()

    def next_layer(self, *, below: int = 0) -> Layer:
        """Let what is written from now on go into another layer, but for the newest ones; returns the one before it.

        That one takes no changes any more; it is to be committed with `commit`.
        """
        position = len(self.layers) - below
        self.layers.insert(position, Layer())
        return self.layers[position - 1]

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


joined_unit: ContextVar[UnitOfWork | None] = ContextVar("joined_unit", default=None)
"""The unit that adapters of its backend write into, wherever they come from; None outside of one."""


class BufferedStore(Generic[C, R]):
    """Keeps the writes of one domain in a unit of work, over the store of a backend; implements `core.store.Store`."""

    def __init__(self, inner: Store[C, R], row_type: type[R], unit: UnitOfWork) -> None:
        self.inner = inner
        self.unit = unit
        self.remembers_ids = True
        """Whether Redis is told the ids of new rows."""
        self._row_type = row_type
        self._reads: dict[str, R | None] = {}
        self._removable = "removed" in row_type.model_fields
        self._encoding: dict[str, int] = {}
        self._calls = 0

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

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> list[R]:
        """Return the rows whose fields of the context equal `selection`, oldest first, or the newest of them.

        Tombstones are left out.
        """
        changes: dict[str, Change] = {}
        for layer in self.unit.layers:
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
        return living if newest is None else living[max(0, len(living) - newest) :]

    async def _stored(self, context: C, key: str) -> R | None:
        if key in self._reads:
            return self._reads[key]
        generation = self.unit.generation
        row = await self.inner.find(context)
        if generation == self.unit.generation:
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

    async def _replace(self, context: C, fields: Mapping[str, Any]) -> Change:
        self._row_type.check_whole(context, fields)
        return await self._add(Change(context, ChangeKind.REPLACE, fields))

    async def _add(self, change: Change) -> Change:
        """Add a change that sets all fields; one that is encoded in a thread keeps its place among those of its row."""
        key = change.context.cache_key
        self._calls += 1
        if is_deferred(change.fields):
            number = self._encoding[key] = self._calls
            change = dataclasses.replace(change, fields=await asyncio.to_thread(encoded_fields, change.fields))
            if self._encoding.get(key) != number:
                return change
        self._encoding.pop(key, None)
        self.unit.add(self, key, change)
        return change

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Replace the row unless there is one that is not a tombstone; True if this call did."""
        self._row_type.check_whole(context, fields)
        key = context.cache_key
        before = self.unit.change_of(self, key)
        while True:
            row = await self.find(context)
            if row is not None and not getattr(row, "removed", False):
                return False
            if before is (now := self.unit.change_of(self, key)):
                break
            before = now
        kind = ChangeKind.CLAIM if before is None else ChangeKind.REPLACE
        self._encoding.pop(key, None)
        self.unit.add(self, key, Change(context, kind, encoded_fields(fields)))
        return True

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Replace or add many rows, after all were checked; returns how many this unit had not written before."""
        for context, fields in writes:
            self._row_type.check_whole(context, fields)
        new = sum(self.unit.change_of(self, context.cache_key) is None for context, _ in writes)
        if any(is_deferred(fields) for _, fields in writes):
            encoded = await asyncio.to_thread(lambda: [encoded_fields(fields) for _, fields in writes])
            writes = [(context, fields) for (context, _), fields in zip(writes, encoded, strict=True)]
        for context, fields in writes:
            if replace:
                await self._add(Change(context, ChangeKind.REPLACE, fields))
            elif self.unit.change_of(self, context.cache_key) is None:
                self.unit.add(self, context.cache_key, Change(context, ChangeKind.INSERT, fields))
        return new

    async def soft_remove(self, context: C) -> bool:
        """Turn the row into a tombstone; False when there is no row."""
        key = context.cache_key
        row = await self.find(context)
        if row is None:
            return False
        change = self.unit.change_of(self, key)
        self._encoding.pop(key, None)
        if change is None or change.kind is ChangeKind.REMOVE:
            self.unit.add(self, key, Change(context, ChangeKind.REMOVE))
        else:
            payload = change.fields.get("payload")
            if isinstance(payload, dict):
                payload = {**cast("dict[str, Any]", payload), "removed": True}
            removed = {**change.fields, "payload": payload, "removed": True}
            self.unit.add(self, key, Change(context, ChangeKind.REPLACE, removed))
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
