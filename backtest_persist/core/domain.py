"""Domain: one value that ties together what belongs to a domain; all that goes through every domain reads it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from pydantic import create_model

from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.db_service import DbService
from backtest_persist.core.persist_instance import PersistInstance
from backtest_persist.core.row import Context, Row, Wire
from backtest_persist.core.soft_delete import RemovableRow
from backtest_persist.errors import InvalidKeyError, SettingsError

__all__ = ("Domain", "Family", "FileLayout")


class Family(StrEnum):
    """The kind of things that a domain keeps."""

    LATEST_VALUE = "latest value"
    """One value of a context; a write replaces it."""
    KEYED = "keyed"
    """Entries by key, with tombstones for removed ones."""
    LIST = "list"
    """Entries by their own ``id``, read as a whole, oldest first."""
    SERIES = "series"
    """Entries by time, which never change."""


@dataclass(frozen=True)
class FileLayout:
    """Where the values of a domain lie below a dump directory.

    A directory or a file is named by one field of the context, or by several joined with ``_``.
    """

    path: str
    """The directory of the domain, such as ``data/funding``; no other domain lies in it."""
    directories: tuple[tuple[str, ...], ...]
    """The fields that name each directory below it."""
    file: tuple[str, ...] = ()
    """The fields that name the file."""
    fixed_file: str = ""
    """The name of the file where the context has no field left to name it."""
    stated_by: str = ""
    """The field of a payload that states its `when` where the framework wrote the file."""

    @property
    def tree(self) -> tuple[str, ...]:
        """The directory, below that of the dump, in which no other domain lies."""
        return tuple(self.path.split("/")[:2])


@dataclass(frozen=True, eq=False)
class Domain:
    """One domain: its name, its classes, its files, and what its adapter's methods are called by.

    `SettingsError` for parts that do not fit together.
    """

    name: str
    """One word, lower case: ``ioc.<name>_db_service``, ``persist.<name>``."""
    family: Family
    cache_service: type[BaseMap]
    db_service: type[DbService[Any, Any]]
    adapter: type[PersistInstance[Any]]
    files: FileLayout
    noun: str = ""
    """The word between ``read_`` and ``_data`` in the adapter's methods; `name` unless given."""
    deletes: bool = False
    """Whether its db service deletes documents, for which a role needs ``remove``."""
    append_only: bool = False
    """Whether an entry of a list stays as it was first written."""
    _parts: type[Wire] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if not self.name.isidentifier() or not self.name.islower():
            raise SettingsError(f"The name of a domain is a word in lower case, not {self.name!r:.40}.")
        schema = self.db_service.schema()
        fields = set(schema.context_type.model_fields)
        if not issubclass(schema.row_type, schema.context_type):
            self._refuse(f"{schema.row_type.__name__} has to inherit from {schema.context_type.__name__}")
        if not issubclass(schema.row_type, RemovableRow) and self.family is Family.KEYED:
            self._refuse(f"{schema.row_type.__name__} of a keyed domain has to inherit from RemovableRow")
        named = {*self.files.file, *(name for names in self.files.directories for name in names)}
        if missing := sorted(fields - named):
            self._refuse(f"its file layout leaves out {', '.join(missing)}, so that two contexts would share a file")
        if unknown := sorted(named - fields):
            self._refuse(f"its file layout names {', '.join(unknown)}, which {schema.context_type.__name__} lacks")
        if bool(self.files.file) == bool(self.files.fixed_file):
            self._refuse("its file layout needs either the fields that name a file, or a fixed name")
        if unknown := sorted(set(self.adapter_parameters) - fields):
            self._refuse(
                f"{self.adapter.__name__} takes {', '.join(unknown)}, which {schema.context_type.__name__} lacks"
            )
        if getattr(self.adapter, "service_type", None) is not self.db_service:
            self._refuse(f"{self.adapter.__name__} has to inherit from PersistInstance[{self.db_service.__name__}]")
        infos = {name: schema.context_type.model_fields[name] for name in self.adapter_parameters}
        parts: Any = {name: (info.annotation, info) for name, info in infos.items()}
        object.__setattr__(self, "_parts", create_model(f"{self.name.title()}Parts", __base__=Wire, **parts))

    def _refuse(self, problem: str) -> None:
        raise SettingsError(f"The domain {self.name!r} cannot work: {problem}.")

    @property
    def collection(self) -> str:
        """The name of its collection."""
        return self.db_service.collection

    @cached_property
    def context_type(self) -> type[Context]:
        """The identity of one of its documents."""
        return self.db_service.schema().context_type

    @cached_property
    def row_type(self) -> type[Row]:
        """One of its documents."""
        return self.db_service.schema().row_type

    @property
    def timed(self) -> bool:
        """Whether a value has a `when` that hides it from earlier readers."""
        return "when" in self.row_type.model_fields

    @property
    def removable(self) -> bool:
        """Whether a value can be removed; it is then a tombstone."""
        return issubclass(self.row_type, RemovableRow)

    @property
    def ordered(self) -> bool:
        """Whether its values are listed, oldest first."""
        return self.family in (Family.KEYED, Family.LIST)

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The fields of a row beside its context, its `when`, its tombstone mark, id and dates."""
        others = {*self.context_type.model_fields, *RemovableRow.model_fields, "when"} - {"payload"}
        return tuple(name for name in self.row_type.model_fields if name not in others)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The arguments of its adapter, without the container."""
        whole = inspect.signature(self.adapter)
        return whole.replace(parameters=[p for name, p in whole.parameters.items() if name != "ioc"])

    @cached_property
    def adapter_parameters(self) -> tuple[str, ...]:
        """The fields of the context that its adapter is constructed with."""
        return tuple(self.signature.parameters)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The fields of the context that its adapter's methods take, or read from an entry."""
        return tuple(name for name in self.context_type.model_fields if name not in self.adapter_parameters)

    def checked(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the arguments of an adapter, each as its context takes it; `InvalidKeyError` for one it refuses."""
        if missing := sorted(set(self.adapter_parameters) - arguments.keys()):
            raise InvalidKeyError(f"{self.name} needs {', '.join(missing)}.")
        parts = self._parts.model_validate(arguments)
        return tuple(getattr(parts, name) for name in self.adapter_parameters)

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions on its collection that a least-privilege role has to allow."""
        return (
            ("find", "insert", "update", "remove", "listIndexes")
            if self.deletes
            else (
                "find",
                "insert",
                "update",
                "listIndexes",
            )
        )
