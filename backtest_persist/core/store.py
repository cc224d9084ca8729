"""Store: the seam below a db service. Whether MongoDB, files or nothing is behind it is decided once, at start."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.row import Context, Row

__all__ = ("Store",)

C = TypeVar("C", bound=Context, contravariant=True)
R = TypeVar("R", bound=Row)


class Store(Protocol[C, R]):
    """Keeps the rows of one domain; all that persist adapters need of a backend.

    `fields` are those beside the context, by their wire names, payloads encoded (see `core.payload`).
    """

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        ...

    def default_when(self) -> int | None:
        """Return the instant that a `when` left out means, in ms UTC: that of the bar in a run, otherwise none."""
        ...

    async def wait_for_init(self) -> None:
        """Get ready; idempotent, and may be called again after a failure. Every method does this by itself."""
        ...

    async def find(self, context: C) -> R | None:
        """Return the row of a context, a tombstone included, or None."""
        ...

    async def upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """Store these fields, atomically, whatever is stored; returns the row."""
        ...

    async def write(self, context: C, fields: Mapping[str, Any]) -> None:
        """Store these fields as `upsert` does, for callers that need no row, which saves the backend to read it."""
        ...

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Store these fields unless a row that is not a tombstone is stored; True for the one caller who did."""
        ...

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Store many contexts in order, each atomically; without `replace` the first write wins.

        Returns how many are new.
        """
        ...

    async def soft_remove(self, context: C) -> bool:
        """Turn the row of a context into a tombstone; False when there is no row."""
        ...

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> RowList[R]:
        """Return the rows whose fields of the context equal `selection`, by Python names, or the newest of them.

        Oldest first either way; tombstones are left out.
        """
        ...
