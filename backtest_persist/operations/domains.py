"""The domains of a container as the operations see them; all operations follow from this list."""

from dataclasses import dataclass
from typing import Any

from backtest_persist.backends.json.layout import Layout
from backtest_persist.container import Container
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Family

__all__ = ("DomainServices", "domain_services")


@dataclass(frozen=True)
class DomainServices:
    """One domain with the services of a container."""

    name: str
    family: Family
    db: DbService[Any, Any]
    cache: BaseMap
    layout: Layout
    """The place of its values in a dump."""
    actions: tuple[str, ...]
    """The actions on its collection that a user of MongoDB needs."""

    @property
    def collection(self) -> str:
        """The name of its collection in MongoDB."""
        return self.db.collection


def domain_services(container: Container) -> tuple[DomainServices, ...]:
    """Return the domains of a container in their order, which is that of reports and tables."""
    return tuple(
        DomainServices(
            name=domain.name,
            family=domain.family,
            db=container.db_service(domain.db_service),
            cache=container.cache_service(domain.cache_service),
            layout=Layout(domain),
            actions=(*domain.actions, "createIndex"),
        )
        for domain in container.domains
    )
