"""Change: what all writes of one context in a unit of work amount to, and what stores the changes of a unit."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from backtest_persist.core.row import Context, utc_now
from backtest_persist.core.store import Store

__all__ = ("Change", "ChangeKind", "Committer", "Part")


class ChangeKind(Enum):
    """How a change treats a stored row of its context."""

    REPLACE = "replace"
    """It sets all fields, whatever is stored."""
    INSERT = "insert"
    """It stores the row where none is stored, a tombstone included; otherwise it changes nothing."""
    CLAIM = "claim"
    """It sets all fields; where a row is stored that is not a tombstone, nothing of the unit may be stored."""
    REMOVE = "remove"
    """It turns the row into a tombstone, where one is stored."""


@dataclass(frozen=True)
class Change:
    """The change of one context: what all writes of it in one unit of work amount to."""

    context: Context
    kind: ChangeKind
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The fields beside the context, by their wire names, encoded; none for `ChangeKind.REMOVE`."""
    at: datetime = field(default_factory=utc_now)
    number: int = 0
    """The place of its call among those of its unit: what is encoded in a thread is added later than it was called."""

    def beside(self, other: "Change | None") -> "Change":
        """Return the change that stands for another one of the same context and this one, whichever came first."""
        if other is None:
            return self
        first, last = (other, self) if other.number <= self.number else (self, other)
        if last.kind is ChangeKind.INSERT:  # which finds the row there
            return first
        if first.kind is ChangeKind.CLAIM and last.kind is ChangeKind.REPLACE:
            return dataclasses.replace(last, kind=ChangeKind.CLAIM)  # the entry still has to be free
        return last


@dataclass(frozen=True, eq=False)
class Part:
    """The changes of one store, in the order in which their contexts were first written."""

    store: Store[Any, Any]
    """The store of the backend itself."""
    changes: Sequence[Change]
    remembers_ids: bool = True
    """Whether Redis is told the ids of new rows."""


class Committer(Protocol):
    """Stores units of work in one backend."""

    async def wait_for_init(self) -> None:
        """Get ready; `SettingsError` where units of work cannot be stored as a whole."""
        ...

    async def commit(self, parts: Sequence[Part]) -> None:
        """Store the changes of all parts, or none of them.

        A cancelled caller cuts nothing: the commit goes on. `WriteOutcomeUnknownError` when nobody knows which of the
        two it was; after any other error it is none.
        """
        ...

    async def close(self) -> None:
        """Wait for the commits in progress, and let go what they needed."""
        ...
