"""RowList: a list of rows that can be had as a frame of flat columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, SupportsIndex, TypeVar, cast, overload

from pydantic.fields import FieldInfo

from backtest_persist.core.frames.columns import Column, Kind, column_of
from backtest_persist.core.frames.frame import RowFrame
from backtest_persist.core.keys import is_instant
from backtest_persist.core.row import Context, Row

__all__ = ("RowList",)

R = TypeVar("R", bound=Row)

_DATES = ("when", "create_date", "updated_date")
_ABSENT = object()
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
        names with a dot between them; lists stay lists. A row without a member has None there. A member whose name is
        that of another column is called ``payload.name``, unless both are always equal. `when`, the dates, and what
        else the domain declares as an instant are instants, in ms UTC. The id of the document is left out.
        """
        if not self:
            return RowFrame(_empty_columns(self._row_type), 0)
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
    values: dict[str, dict[str, list[Any]]] = {name: {} for name, _ in fields}
    for position, row in enumerate(rows):
        for name, columns in values.items():
            for path, value in dict(_members(name, getattr(row, name))).items():
                column = columns.setdefault(path, [])
                column.extend([_ABSENT] * (position - len(column)))
                column.append(value)
    named: dict[str, Column] = {}
    for name, field in fields:
        columns = values[name]
        for path, column in columns.items():
            column.extend([_ABSENT] * (len(rows) - len(column)))
            plain = [None if value is _ABSENT else value for value in column]
            inner = len(columns) > 1 if path == name else any(other.startswith(f"{path}.") for other in columns)
            if inner and all(value is None for value in plain):
                continue  # of a mapping that some rows do not have
            if path == name:
                named[name] = Column(Kind.INSTANT, plain) if is_instant(field) else column_of(plain)
            elif path not in values:
                named[f"{name}.{path}" if path in named else path] = column_of(plain)
            elif any(value not in (_ABSENT, getattr(row, path)) for value, row in zip(column, rows, strict=True)):
                named[f"{name}.{path}"] = column_of(plain)
    return named


def _members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the names and values of the columns of one field."""
    return _leaves(cast("Mapping[Any, Any]", value)) if isinstance(value, Mapping) else iter([(name, value)])


def _leaves(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{path}", leaf) for path, leaf in _leaves(cast("Mapping[Any, Any]", value)))
        else:
            yield str(name), value
