"""The reports of import and export."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ("Exported", "FileCounts", "Imported", "Skipped")


@dataclass(frozen=True)
class Skipped:
    """A file or document that was left out."""

    path: str
    """The path of the file, relative to the dump, in a series file with the number of the line; or the collection and
    the id of the document."""
    reason: str


@dataclass
class FileCounts:
    """The number of files of one domain in an import, and of their values by what became of them.

    A file holds one value, but a series file a candle in each line.
    """

    files: int = 0
    new: int = 0
    """Stored, or to be stored in a dry run."""
    same: int = 0
    """Stored before, with the same value."""
    skipped: int = 0


@dataclass
class Imported:
    """The report of an import."""

    domains: dict[str, FileCounts]
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Every file, or line of a series file, that was not imported, and why."""
    assumed: dict[str, str] = field(default_factory=dict[str, str])
    """The directories whose names can be read in several ways, and how they were read."""
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The directories that hold no persisted data, and the number of files in each."""
    ignored_fields: list[str] = field(default_factory=list[str])
    """The names of fields of candles that are not stored, because no candle has them."""
    seconds: float = 0.0


@dataclass
class Exported:
    """The report of an export."""

    domains: dict[str, int]
    """The number of values that were written, each into a file, but candles into series files if `candles` says so."""
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Every document that was not exported, and why."""
    seconds: float = 0.0
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The collections that belong to no domain, and the number of documents in each: they are not exported."""
    candles: Literal["files", "series"] = "files"
    """Whether each candle is a file, or each month of a series."""
    series_files: int = 0
    """The number of series files that were written."""
