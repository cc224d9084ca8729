"""RowList: a list of rows that can be had as a frame of flat columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, SupportsIndex, TypeVar, cast, overload

from pydantic.fields import FieldInfo

from backtest_persist.core.frames.columns import Column, Kind, column_of
from backtest_persist.core.frames.frame import RowFrame
from backtest_persist.core.keys import is_instant
from backtest_persist.core.row import Context, Row
from backtest_persist.errors import InvalidPayloadError

__all__ = ("RowList",)

R = TypeVar("R", bound=Row)

_DATES = ("when", "create_date", "updated_date")
_KINDS: Mapping[Any, Kind] = {
    bool: Kind.BOOL,
    int: Kind.INT,
    float: Kind.FLOAT,
    str: Kind.TEXT,
    datetime: Kind.INSTANT,
}


class RowList(list[R], Generic[R]):
    """A list of rows, which `to_frame` turns into columns; a slice of it is one, too."""

    def __init__(self, rows: Iterable[R] = (), row_type: type[Row] | None = None) -> None:
        super().__init__(rows)
        self._row_type = row_type

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> R: ...
    @overload
    def __getitem__(self, index: slice, /) -> "RowList[R]": ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> "R | RowList[R]":
        found = super().__getitem__(index)
        return RowList(cast("list[R]", found), self._row_type) if isinstance(index, slice) else cast("R", found)

    def to_frame(self) -> RowFrame:
        """Return the rows as flat columns, a row each: the context, then what is stored in it, and the dates.

        The members of a payload are columns by the names that they are stored under, those of a mapping in it by the
        names with a dot between them; lists stay lists. A row without a member, or with an empty mapping, has None
        there. A member whose name is that of another column is called ``payload.name``, unless it always says what the
        context or a date says. `when`, the dates, and what else the domain declares as an instant are instants, in ms
        UTC. The id of the document is left out. `InvalidPayloadError` for rows of several types.
        """
        if not self:
            return RowFrame(_empty_columns(self._row_type), 0)
        if len(types := {type(row) for row in self}) > 1:
            names = " and ".join(sorted(row_type.__name__ for row_type in types))
            raise InvalidPayloadError(f"A frame has rows of one type, not of {names}; make a frame of each.")
        return RowFrame(_columns(self), len(self))


def _empty_columns(row_type: type[Row] | None) -> dict[str, Column]:
    fields = {} if row_type is None else row_type.model_fields
    return {
        name: Column(Kind.INSTANT if is_instant(field) else _KINDS[field.annotation], [])
        for name, field in _in_order(row_type, fields)
        if is_instant(field) or field.annotation in _KINDS
    }


def _in_order(row_type: type[Row] | None, fields: Mapping[str, FieldInfo]) -> list[tuple[str, FieldInfo]]:
    """Return the fields of rows as the columns come: the context, the others, the dates; without the id."""
    bases = () if row_type is None else row_type.__mro__
    contexts = [base for base in bases if issubclass(base, Context) and not issubclass(base, Row)]
    context = list(dict.fromkeys(name for base in contexts for name in base.model_fields))
    others = [name for name in fields if name not in context and name not in _DATES and name != "id"]
    return [(name, fields[name]) for name in (*context, *others, *_DATES) if name in fields]


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    row_type = type(rows[0])
    fields = _in_order(row_type, row_type.model_fields)
    values: dict[str, dict[tuple[Any, ...], list[Any]]] = {name: {(): []} for name, _ in fields}
    for position, row in enumerate(rows):
        for name, columns in values.items():
            for path, value in _leaves((), getattr(row, name)):
                column = columns.setdefault(path, [])
                column.extend([None] * (position - len(column)))
                column.append(value)
    named: dict[str, Column] = {}
    for name, field in fields:
        outer = {path[:depth] for path in values[name] for depth in range(len(path))}
        for path, column in values[name].items():
            column.extend([None] * (len(rows) - len(column)))
            if path in outer and all(value is None for value in column):
                continue  # of a mapping that some rows do not have
            if not path:
                named[name] = Column(Kind.INSTANT, column) if is_instant(field) else column_of(column)
                continue
            called = ".".join(map(str, path))
            if called in values and called != name:
                if all(value in (None, getattr(row, called)) for value, row in zip(column, rows, strict=True)):
                    continue
                called = f"{name}.{called}"
            while called in named:
                called = f"{name}.{called}"
            named[called] = column_of(column)
    return named


def _leaves(path: tuple[Any, ...], value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Iterate over what a value holds that is no mapping, with the names that lead to it; an empty one holds None."""
    if not isinstance(value, Mapping):
        yield path, value
    elif not value:
        yield path, None
    else:
        for name, member in cast("Mapping[Any, Any]", value).items():
            yield from _leaves((*path, name), member)
