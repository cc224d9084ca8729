"""The collections that belong to no domain of a container: those of a newer release, or of other programs."""

from backtest_persist.connections import Operation
from backtest_persist.container import Container
from backtest_persist.core.lease_document import LEASES
from backtest_persist.errors import BacktestPersistError, ErrorReason
from backtest_persist.operations.domains import domain_services

__all__ = ("unknown_collections",)


async def unknown_collections(container: Container) -> dict[str, int]:
    """Return the number of documents, as estimated by the server, in each collection that belongs to no domain.

    That of the leases is the package's own, and says nothing once their holders have ended: no dump needs it.

    Collections that the user may not read are left out.
    """
    mongo = container.mongo_service
    async with mongo.operation(Operation("The list of collections")):
        names = await mongo.database.list_collection_names(authorizedCollections=True)
    known = {LEASES.collection, *(domain.collection for domain in domain_services(container))}
    counts: dict[str, int] = {}
    for name in sorted(set(names) - known):
        if not name.startswith("system."):
            try:
                async with mongo.operation(Operation("count", name)):
                    counts[name] = await mongo.collection(name).estimated_document_count()
            except BacktestPersistError as error:
                if error.reason is not ErrorReason.NOT_PERMITTED:
                    raise
    return counts
