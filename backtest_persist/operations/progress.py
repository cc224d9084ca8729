"""The progress of an operation, as reported to whoever displays it."""

from typing import Protocol

__all__ = ("NoProgress", "Progress")


class Progress(Protocol):
    """Receives the progress of an operation."""

    def begin(self, total: int) -> None:
        """Announce the number of items of the whole operation."""
        ...

    def advance(self, done: int) -> None:
        """Add to the number of items that are done."""
        ...


class NoProgress:
    """Ignores the progress, for a caller who did not ask for it."""

    def begin(self, total: int) -> None:
        """Ignore the number of items."""

    def advance(self, done: int) -> None:
        """Ignore the items that are done."""
