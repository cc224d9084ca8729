"""The narrow unique indexes of an older release: found, and dropped on request."""

from dataclasses import dataclass, field

from backtest_persist.container import Container
from backtest_persist.operations.domains import domain_services

__all__ = ("Migrated", "find_narrow_indexes", "migrate")


@dataclass
class Migrated:
    """The report of `migrate`."""

    dropped: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The names of the indexes that were dropped, by collection."""


async def find_narrow_indexes(container: Container) -> dict[str, list[str]]:
    """Return the names of the unique indexes narrower than the context of their domain, by collection; writes nothing.

    `StoreUnavailableError` when MongoDB does not answer.
    """
    narrow = {domain.collection: await domain.db.narrow_indexes() for domain in domain_services(container)}
    return {collection: names for collection, names in narrow.items() if names}


async def migrate(container: Container) -> Migrated:
    """Drop the narrow unique indexes, then create and verify the indexes of every collection; touches no document.

    A process of the older release that still runs on the database creates the narrow indexes again.

    `WriteRejectedError` for a user who may not drop an index, `IndexConflictError` when an index cannot be created,
    `StoreUnavailableError` when MongoDB does not answer.
    """
    narrow = await find_narrow_indexes(container)
    report = Migrated()
    for domain in domain_services(container):
        if domain.collection in narrow:
            report.dropped[domain.collection] = await domain.db.drop_narrow_indexes()
    if report.dropped:
        await container.wait_for_init()
    return report
