"""The backend on MongoDB, with Redis in front."""

from backtest_persist.backends.services import AdapterFactories
from backtest_persist.container import Container

__all__ = ("MongoBackend",)


class MongoBackend(AdapterFactories):
    """Builds the adapters that keep everything in the MongoDB of a container; see `contracts.Backend`."""

    def __init__(self, container: Container) -> None:
        super().__init__(container, container.domains)
