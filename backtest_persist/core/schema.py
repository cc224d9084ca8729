"""Schema: what a collection holds, which indexes it needs, and how it is prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

from backtest_persist.connections import Collection, MongoState, Operation
from backtest_persist.core.indexes import Index, prepare_indexes, unique_hint
from backtest_persist.core.row import Context, Row

__all__ = ("Schema",)

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Schema(Generic[C, R]):
    """The declaration of a db service: its collection, the types of context and row, its indexes and its order."""

    collection: str
    context_type: type[C]
    row_type: type[R]
    secondary_indexes: tuple[Index, ...]
    default_sort: Sequence[tuple[str, int]]

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The wire names of the context: the fields of the unique index, in index order."""
        return self.context_type.wire_names()

    @cached_property
    def unique_index(self) -> dict[str, int]:
        """The hint by which the server refuses, as `BAD_HINT`, a write to a database that was dropped meanwhile."""
        return unique_hint(self.fields)

    def values_in(self, document: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Return the values of the context of a document; None if one is an array, which no context has."""
        values = tuple(document.get(name) for name in self.fields)
        return None if any(isinstance(value, list) for value in values) else values

    def may_find(self, context: C, document: Mapping[str, Any]) -> bool:
        """Whether MongoDB takes a document for that of a context: where it has an array, for each value in it."""
        found = ((value, document.get(name)) for name, value in context.to_filter().items())
        return all(value in other if isinstance(other, list) else value == other for value, other in found)

    def of(self, state: MongoState) -> Collection:
        """Return the collection itself, for the event loop of `state`."""
        return state.collection(self.collection)

    def operation(self, verb: str, context: C | None = None, *, write: bool = False) -> Operation:
        """Return what the message of an error names: the verb, the collection and the context."""
        return Operation(verb, self.collection, context, write=write)

    def describe(self, context: C) -> str:
        """Return collection and context for a message."""
        return f"{self.collection} ({context.describe()})"

    async def prepare(self, state: MongoState, *, usable: bool = True) -> None:
        """Create what is missing and verify the indexes; see `prepare_indexes`."""
        await state.select_server(self.operation("reading the indexes"))
        await prepare_indexes(
            self.of(state), self.fields, self.secondary_indexes, state.seconds, usable=usable, errors=state.errors
        )

    async def prepare_again(self, state: MongoState) -> None:
        """Create the indexes of a collection that was dropped since it was prepared, or wait until they are usable."""
        state.prepared.discard(self.collection)
        await state.prepare(self.collection, partial(self.prepare, usable=False))
