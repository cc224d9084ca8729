"""Context and Row: snake_case in Python, camelCase on the wire, and the simulation time `when`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Self, cast

from bson.int64 import Int64
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from backtest_persist.connections import to_plain
from backtest_persist.contracts import When
from backtest_persist.core.instants import INT64_MAX, EarlyTimes, checked_instant, refused
from backtest_persist.core.keys import STORED
from backtest_persist.errors import InvalidKeyError, InvalidPayloadError, InvalidWhenError

__all__ = ("Context", "Row", "to_horizon", "to_millis", "to_wire", "utc_now", "wire_when")


def to_wire(name: str) -> str:
    """The wire name of a Python field: ``strategy_name`` -> ``strategyName``, ``id`` -> ``_id``."""
    return "_id" if name == "id" else to_camel(name)


class Wire(BaseModel):
    """A model with Python names here and wire names in MongoDB; both build it."""

    model_config = ConfigDict(alias_generator=to_wire, populate_by_name=True, frozen=True, extra="ignore")


class Context(Wire):
    """The identity of one document of a domain; its fields are the unique index, in index order.

    Building one from unusable components raises `InvalidKeyError`.
    """

    _fields: ClassVar[tuple[tuple[str, str], ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the (Python name, wire name) pairs once per class."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._fields = tuple((name, to_wire(name)) for name in cls.model_fields)

    @property
    def cache_key(self) -> str:
        """The Redis key of this context inside its domain's namespace."""
        raise TypeError(f"{type(self).__name__} spells out no cache_key.")

    @classmethod
    def wire_names(cls) -> tuple[str, ...]:
        """The fields of the unique index, in index order."""
        return tuple(wire for _, wire in cls._fields)

    def to_filter(self) -> dict[str, Any]:
        """The filter that selects exactly this context: the fields of the unique index and nothing else."""
        return {wire: getattr(self, name) for name, wire in self._fields}

    def matches(self, document: Mapping[str, Any]) -> bool:
        """Whether a document belongs to this context: every field, type-strictly (``1`` is not ``True``)."""
        for name, wire in self._fields:
            expected, found = getattr(self, name), document.get(wire)
            if not (found == expected and (type(found) is type(expected) or _is_number(expected, found))):
                return False
        return True

    def parts(self) -> dict[str, Any]:
        """Return the names, in snake_case, and values of this context."""
        return {name: getattr(self, name) for name, _ in self._fields}

    def describe(self) -> str:
        """The context for an error message."""
        return ", ".join(f"{name}={getattr(self, name)!r:.80}" for name, _ in self._fields)


def _is_number(expected: Any, found: Any) -> bool:
    """Whether a number is meant and found; JavaScript's are of one type."""
    numbers = isinstance(expected, int) and isinstance(found, int | float)
    return numbers and not isinstance(expected, bool) and not isinstance(found, bool)


class Row(Wire):
    """The part of a stored document that is not its context: ``id`` and two instants in UTC."""

    id: Annotated[str, BeforeValidator(str)]
    create_date: datetime
    updated_date: datetime

    _content_names: ClassVar[tuple[str, ...]]
    """The names of the fields in which types of BSON can stand."""
    _contents: ClassVar[tuple[str, ...]]
    """Their wire names."""
    _needed: ClassVar[frozenset[str]]
    """The wire names of the fields that a write has to give."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember once per class which fields have to be made plain, and which a write has to give."""
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields.items()
        contexts = [base for base in cls.__mro__ if issubclass(base, Context) and not issubclass(base, Row)]
        given = {*Row.model_fields, *(name for context in contexts for name in context.model_fields)}
        cls._needed = frozenset(to_wire(name) for name, field in fields if field.is_required() and name not in given)
        cls._content_names = tuple(name for name, field in fields if cast("Any", field.annotation) not in _ALWAYS_PLAIN)
        cls._contents = tuple(map(to_wire, cls._content_names))

    @classmethod
    def check_whole(cls, context: Context, fields: Mapping[str, Any]) -> None:
        """Refuse to write fields that make no row: `InvalidPayloadError`, before anything is sent."""
        if not cls._needed <= fields.keys():
            raise InvalidPayloadError(
                f"{cls.__name__} ({context.describe()}): a write needs all fields of a row; give "
                f"{', '.join(sorted(cls._needed - fields.keys()))} as well.",
                context=context.parts(),
            )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Build the row of a MongoDB document, whichever language wrote its numbers.

        A document that lacks a field, or has one of another type, is an `InvalidPayloadError` that names it.
        """
        try:
            return cls.model_validate(cls._with_plain_contents(document), context=STORED)
        except ValidationError as error:
            problem = f"see {', '.join(sorted({str(found['loc'][0]) for found in error.errors()}))}"
        except InvalidKeyError as error:
            problem = str(error).rstrip(".")
        raise InvalidPayloadError(
            f"The document {document.get('_id')} is no {cls.__name__}: {problem}. Repair or remove it."
        )

    @classmethod
    def from_documents(cls, documents: Sequence[Mapping[str, Any]]) -> list[Self]:
        """Build many rows; see `from_document`."""
        try:
            plain = [cls._with_plain_contents(document) for document in documents]
            return cast("list[Self]", _list_of(cls).validate_python(plain, context=STORED))
        except (InvalidKeyError, ValidationError):
            return [cls.from_document(document) for document in documents]  # which names the one

    def copied(self, **changes: Any) -> Self:
        """Return an equal row, but for these changes, whose contents belong to the caller."""
        names = type(self)._content_names
        contents = {name: to_plain(getattr(self, name)) for name in names if name not in changes}
        return self.model_copy(update={**contents, **changes})

    @classmethod
    def _with_plain_contents(cls, document: Mapping[str, Any]) -> Mapping[str, Any]:
        contents = {name: to_plain(document[name]) for name in cls._contents if name in document}
        return {**document, **contents} if contents else document

    @classmethod
    def sift(cls, documents: Sequence[Mapping[str, Any]]) -> tuple[list[Self], list[tuple[str, InvalidPayloadError]]]:
        """Build the rows of those documents that are some; of the others return id and error."""
        try:
            return cls.from_documents(documents), []
        except InvalidPayloadError:
            rows: list[Self] = []
            refused: list[tuple[str, InvalidPayloadError]] = []
            for document in documents:
                try:
                    rows.append(cls.from_document(document))
                except InvalidPayloadError as error:
                    refused.append((str(document["_id"]), error))
            return rows, refused


@cache
def _list_of(row_type: type[Row]) -> TypeAdapter[list[Row]]:
    return TypeAdapter(cast("Any", GenericAlias(list, (row_type,))))


_ALWAYS_PLAIN = (bool, datetime, float, int, str)
"""The types of fields that pydantic builds from what the driver gives for them."""


def to_millis(when: When, early: EarlyTimes = refused) -> int:
    """Return a simulation time as whole ms since the epoch (UTC); a finer part is cut off, never rounded up.

    Raises `InvalidWhenError` for a naive datetime, bool, None, float (NaN included), anything beyond 64 bits, and an
    int in another unit than ms; see `instants.checked_instant`. The methods of the same name of a `DbService` admit
    what ``CC_ALLOW_EARLY_TIMES`` does.
    """
    return checked_instant(when, "when", early, InvalidWhenError)


def wire_when(when: When, early: EarlyTimes = refused) -> Int64:
    """Return a simulation time as it is stored: int64 ms; see `to_millis`."""
    return Int64(to_millis(when, early))


def to_horizon(when: When | None, early: EarlyTimes = refused) -> int:
    """Return the last ms a reader at `when` may see; without `when` there is no limit. See `to_millis`."""
    return INT64_MAX if when is None else to_millis(when, early)


def utc_now() -> datetime:
    """The present, cut to the whole ms that MongoDB stores."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
