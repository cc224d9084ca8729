"""The reports of import and export."""

from dataclasses import dataclass, field

__all__ = ("Exported", "FileCounts", "Imported", "Skipped")


@dataclass(frozen=True)
class Skipped:
    """A file or document that was left out."""

    path: str
    """The path of the file, relative to the dump; or the collection and the id of the document."""
    reason: str


@dataclass
class FileCounts:
    """The number of files of one domain in an import, by what became of them."""

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
    """Every file that was not imported, and why."""
    assumed: dict[str, str] = field(default_factory=dict[str, str])
    """The directories whose names can be read in several ways, and how they were read."""
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The directories that hold no persisted data, and the number of files in each."""
    seconds: float = 0.0


@dataclass
class Exported:
    """The report of an export."""

    domains: dict[str, int]
    """The number of files that were written."""
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Every document that was not exported, and why."""
    seconds: float = 0.0
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """The collections that belong to no domain, and the number of documents in each: they are not exported."""
