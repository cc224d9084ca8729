"""The place of each domain in a dump, and the form of its values: what `FileLayout` and the row of a domain say.

A directory or a file is named by one field of the context, or by several joined with ``_``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any, get_origin

from backtest_persist.backends.json.names import escape, shorten, unescape
from backtest_persist.core.domain import Domain
from backtest_persist.core.keys import mode_word
from backtest_persist.core.row import to_wire
from backtest_persist.domains import DOMAINS

__all__ = ("LAYOUTS", "SERIES_PATH", "Layout", "Segment", "Shape")

SERIES_PATH = "data/candle-series"
"""The directory, below that of a dump, of candles in series files; see `operations.transfer.series_files`."""

_FLAGS = {mode_word(backtest): backtest for backtest in (True, False)}


class Shape(Enum):
    """The form of the value in a file."""

    PAYLOAD = auto()
    """The payload of the row: an object or null."""
    LIST = auto()
    """The one list of the row: an array."""
    OBJECT = auto()
    """An object of all fields of the row beside its context, its `when`, its tombstone mark, id and dates."""


@dataclass(frozen=True)
class Segment:
    """A path segment and the parts from which it is joined."""

    parts: tuple[str, ...]
    ambiguous: bool
    """Whether other parts give the same `plain` name."""

    @property
    def plain(self) -> str:
        """The name that the TypeScript framework gives these parts."""
        return shorten("_".join(map(escape, self.parts)))

    @property
    def strict(self) -> str:
        """A name that no other parts have."""
        if not self.ambiguous:
            return self.plain
        return shorten("_".join(escape(part).replace("_", "%5F") for part in self.parts))

    @property
    def labelled(self) -> bool:
        """Whether the parts cannot be read from the name alone."""
        return self.ambiguous or "%~" in self.plain


@dataclass(frozen=True, eq=False)
class Layout:
    """The place of one domain: a path, directories and files named by fields of the context, and their values."""

    domain: Domain

    @cached_property
    def path(self) -> str:
        """The directory of the domain below that of the dump."""
        return self.domain.files.path

    @cached_property
    def directories(self) -> tuple[tuple[str, ...], ...]:
        """The fields of each directory."""
        return self.domain.files.directories

    @cached_property
    def file(self) -> tuple[str, ...]:
        """The fields of the name of a file; empty for a file with a fixed name."""
        return self.domain.files.file

    @cached_property
    def fixed_file(self) -> str:
        """The name of the file, if no field names it."""
        return self.domain.files.fixed_file

    @cached_property
    def ordered(self) -> bool:
        """Whether the domain is read as a list, oldest first."""
        return self.domain.ordered

    @cached_property
    def removable(self) -> bool:
        """Whether a value can be removed; it is then a tombstone, and ``removed`` in a payload marks one."""
        return self.domain.removable

    @cached_property
    def timed(self) -> bool:
        """Whether a value has a `when`."""
        return self.domain.timed

    @cached_property
    def stated_by(self) -> str:
        """The field in which a payload of the framework contains its `when`."""
        return self.domain.files.stated_by

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The wire names of the fields of a row that its file contains."""
        return tuple(map(to_wire, self.domain.contents))

    @cached_property
    def shape(self) -> Shape:
        """The form of a value."""
        if self.contents == ("payload",):
            return Shape.PAYLOAD
        fields = [self.domain.row_type.model_fields[name] for name in self.domain.contents]
        return Shape.LIST if [get_origin(field.annotation) for field in fields] == [list] else Shape.OBJECT

    @cached_property
    def value_types(self) -> tuple[type[Any], ...]:
        """The types that a value can be of."""
        return {Shape.PAYLOAD: (dict, type(None)), Shape.LIST: (list,), Shape.OBJECT: (dict,)}[self.shape]

    @cached_property
    def directory_fields(self) -> tuple[str, ...]:
        """The fields that name the directories of a context; together they identify it."""
        return tuple(dict.fromkeys(name for fields in self.directories for name in fields))

    def folder(self, context: Mapping[str, Any]) -> Iterator[Segment]:
        """Iterate over the directories of a context, which has been checked by its domain."""
        for fields in self.directories:
            if (segment := self._segment(fields, context)).parts:
                yield segment

    def name(self, context: Mapping[str, Any]) -> str:
        """Return the name of the value of a context, which has been checked by its domain."""
        parts = [_part(context[field]) for field in self.file]
        if len(self._free) > 1:
            parts = [part.replace("%", "%25").replace("_", "%5F") for part in parts]
        return "_".join(parts) or self.fixed_file

    def parse_name(self, name: str) -> dict[str, Any] | None:
        """Return the fields of the context that the name of a value contains; None for a name that `name` never gives.

        Values are of the types of the context, but not checked otherwise.
        """
        if not self.file:
            return {} if name == self.fixed_file else None
        if len(self._free) == len(self.file) == 1:
            return {self.file[0]: name}
        if len(self._free) > 1:
            parts = [unescape(part) for part in name.split("_")]
        else:  # all but the one free field are without "_"
            before = self.file.index(self._free[0]) if self._free else len(self.file) - 1
            *first, rest = name.split("_", before)
            parts = [*first, *rest.rsplit("_", len(self.file) - before - 1)]
        if len(parts) != len(self.file) or not all(parts):
            return None
        found = {field: self.parse(field, part) for field, part in zip(self.file, parts, strict=True)}
        return None if None in found.values() else found

    @cached_property
    def _free(self) -> tuple[str, ...]:
        """The fields of the name of a file that may contain ``_``."""
        return tuple(field for field in self.file if self._type(field) not in (bool, int))

    def parse(self, field: str, part: str) -> Any:
        """Return the value of a field from its part of a name; None for a part that no value has."""
        if self.is_flag(field):
            return _FLAGS.get(part)
        if self._type(field) is int:
            return int(part) if re.fullmatch(r"0|-?[1-9][0-9]{0,18}", part) else None
        return part

    def is_flag(self, field: str) -> bool:
        """Whether a field is a bool, which is one word in a name."""
        return self._type(field) is bool

    def _type(self, field: str) -> Any:
        return self.domain.context_type.model_fields[field].annotation

    def _segment(self, fields: tuple[str, ...], context: Mapping[str, Any]) -> Segment:
        parts = tuple(part for field in fields if (part := _part(context[field])))
        free = sum(not isinstance(context[field], bool) for field in fields)
        joined = free > 1 and any("_" in part for part in parts)
        # the framework leaves an empty frame out, and its live trading has none
        frameless = "frame_name" in fields and free > 1 and not (context["frame_name"] and context["backtest"])
        return Segment(parts, ambiguous=joined or frameless)


def _part(value: Any) -> str:
    return mode_word(value) if isinstance(value, bool) else str(value)


LAYOUTS: Mapping[str, Layout] = {domain.name: Layout(domain) for domain in DOMAINS}
"""The layouts of the domains of this package, by their names."""
