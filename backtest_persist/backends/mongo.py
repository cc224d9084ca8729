"""The backend on MongoDB, with Redis in front."""

from backtest_persist.backends.services import AdapterFactories
from backtest_persist.container import Container
from backtest_persist.core.lease import LEASE_SECONDS, Lease
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.transaction import MongoCommitter

__all__ = ("MongoBackend",)


class MongoBackend(AdapterFactories):
    """Builds the adapters that keep everything in the MongoDB of a container; see `contracts.Backend`."""

    def __init__(self, container: Container) -> None:
        super().__init__(container, container.domains)
        self._container = container

    def committer(self, lease: Lease | None = None) -> MongoCommitter:
        """Return what stores a unit of work as one transaction, with a lease only as long as that is held."""
        return MongoCommitter(self._container.mongo_service, lease)

    def lease(self, context: LeaseContext, *, wait: float = 0.0, duration: float = LEASE_SECONDS) -> Lease:
        """Return the lease of a context, in ``lease-items``."""
        return Lease(self._container, context, wait=wait, duration=duration)
