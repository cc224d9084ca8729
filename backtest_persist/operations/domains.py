"""The domains of a container as the operations see them: the only place that tells them which domains exist."""

from dataclasses import dataclass
from typing import Any, Literal

from backtest_persist.backends.json.layout import LAYOUTS, Layout
from backtest_persist.container import Container
from backtest_persist.core.base_map import BaseMap
from backtest_persist.core.db_service import DbService
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.domains.interval import IntervalDbService

__all__ = ("FAMILIES", "DomainServices", "Family", "domain_services")

Family = Literal["latest", "keyed", "list", "series"]

FAMILIES: tuple[Family, ...] = ("latest", "keyed", "list", "series")
"""The families in the order of reports: the latest value of a context, keyed values with tombstones, lists, series."""

_ACTIONS = ("find", "insert", "listIndexes", "update", "createIndex")


@dataclass(frozen=True)
class DomainServices:
    """One domain: its two services, and what the operations have to know about its documents and files."""

    name: str
    db: DbService[Any, Any]
    cache: BaseMap
    layout: Layout
    """The place of its values in a dump."""
    family: Family
    actions: tuple[str, ...]
    """The actions on its collection that a user of MongoDB needs."""

    @property
    def collection(self) -> str:
        """The name of its collection in MongoDB."""
        return self.db.collection


def domain_services(container: Container) -> tuple[DomainServices, ...]:
    """Return the domains of a container, in the order of reports and tables."""
    return tuple(_domain(container, db) for db in container.db_services)


def _domain(container: Container, db: DbService[Any, Any]) -> DomainServices:
    name = db.collection.removesuffix("-items")
    layout = LAYOUTS[name]
    family: Family = "latest"
    if isinstance(db, CandleDbService):
        family = "series"
    elif layout.ordered:
        family = "keyed" if layout.removable else "list"
    return DomainServices(
        name=name,
        db=db,
        cache=getattr(container, f"{name}_cache_service"),
        layout=layout,
        family=family,
        actions=(*_ACTIONS, "remove") if isinstance(db, IntervalDbService) else _ACTIONS,
    )
