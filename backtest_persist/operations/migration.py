"""Migration: narrow indexes and duplicates of an older release or a missing index, found and resolved on request."""

import os
from dataclasses import dataclass, field
from typing import Literal

from backtest_persist.container import Container
from backtest_persist.errors import SettingsError
from backtest_persist.operations.domains import domain_services
from backtest_persist.operations.duplicates import Duplicates, find_duplicates, remove_older

__all__ = ("Migrated", "find_narrow_indexes", "migrate")

_PASSES = 10
"""The number of times that duplicates are looked for, as a strategy runner may write to one of them meanwhile."""


@dataclass
class Migrated:
    """The report of `migrate`."""

    dropped: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The names of the indexes that were dropped, by collection."""
    removed: dict[str, int] = field(default_factory=dict[str, int])
    """The number of older duplicates that were moved to the dump, by collection."""
    duplicates: dict[str, list[Duplicates]] = field(default_factory=dict[str, list[Duplicates]])
    """The contexts that still have several documents, by collection, which therefore has no unique index."""


async def find_narrow_indexes(container: Container) -> dict[str, list[str]]:
    """Return the names of the unique indexes narrower than the context of their domain, by collection; writes nothing.

    `StoreUnavailableError` when MongoDB does not answer.
    """
    narrow = {domain.collection: await domain.db.narrow_indexes() for domain in domain_services(container)}
    return {collection: names for collection, names in narrow.items() if names}


async def migrate(
    container: Container, *, keep: Literal["newest"] | None = None, dump: str | os.PathLike[str] | None = None
) -> Migrated:
    """Drop the narrow unique indexes, then create and verify the indexes of every collection without duplicates.

    Documents are only touched with ``keep="newest"``: of several documents of one context all but the newest are then
    moved to the file `dump`; see `remove_older`. A process of the older release that still runs on the database creates
    the narrow indexes again.

    `WriteRejectedError` for a user who may not drop an index or delete, `IndexConflictError` when an index cannot be
    created, `SettingsError` without a usable `dump`, `StoreUnavailableError` when MongoDB does not answer.
    """
    if keep is not None and (keep != "newest" or dump is None):
        raise SettingsError("Of duplicates the newest can be kept; the others need a file: keep='newest', dump=FILE.")
    narrow = await find_narrow_indexes(container)
    report = Migrated(duplicates=await find_duplicates(container))
    if dump is not None and keep is not None:
        await _resolve(container, report, dump)
    for domain in domain_services(container):
        if domain.collection in narrow:
            report.dropped[domain.collection] = await domain.db.drop_narrow_indexes()
    if report.dropped or report.removed:
        for domain in domain_services(container):
            if domain.collection not in report.duplicates:
                await domain.db.wait_for_init()
    return report


async def _resolve(container: Container, report: Migrated, dump: str | os.PathLike[str]) -> None:
    for _ in range(_PASSES):
        if not report.duplicates:
            return
        for name, number in (await remove_older(container, report.duplicates, dump)).items():
            report.removed[name] = report.removed.get(name, 0) + number
        report.duplicates = await find_duplicates(container)
