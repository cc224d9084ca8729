"""PersistInstance: the common part of the persist adapters of all domains."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, get_args

from backtest_persist.core.db_service import DbService
from backtest_persist.core.unit_of_work import joined_unit
from backtest_persist.errors import SettingsError

__all__ = ("PersistInstance", "Services")

D = TypeVar("D", bound=DbService[Any, Any])


class Services(Protocol):
    """Gives adapters their db services; a `Container` does, and every backend."""

    def db_service(self, kind: type[D], /) -> D:
        """Return the db service of that class; `SettingsError` if there is no such domain here."""
        ...


class PersistInstance(Generic[D]):
    """An adapter that strategy code calls, over the db service ``D`` of its domain.

    It is written once for all backends: the store behind the db service is decided by `ioc`, without which the
    process-wide container is used.
    """

    _bound: ClassVar[Services | None] = None
    service_type: ClassVar[type[DbService[Any, Any]]]
    """The class of the db service."""
    on_dispose: Callable[[Any], None] | None = None
    """Called with this adapter when it is disposed; set by the registry that memoises it."""

    def __init_subclass__(cls) -> None:
        """Take the class of the db service from ``PersistInstance[ItsDbService]``."""
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            types = get_args(base)
            if types and isinstance(types[0], type):
                cls.service_type = types[0]

    def __init__(self, ioc: Services | None) -> None:
        self._ioc = ioc

    @staticmethod
    def bind(services: Services) -> None:
        """Set the container of the adapters that are given none."""
        PersistInstance._bound = services

    async def wait_for_init(self, initial: bool) -> None:
        """Get the store of this domain ready when `initial`; may be called again, also after a failure."""
        if initial:
            await self.db.wait_for_init()

    def _dispose(self) -> None:
        forget, self.on_dispose = self.on_dispose, None
        if forget is not None:
            forget(self)

    @property
    def db(self) -> D:
        """The db service behind this adapter."""
        services = PersistInstance._bound if self._ioc is None else self._ioc
        if services is None:
            raise SettingsError("This adapter knows no container; import backtest_persist, or pass ioc=container.")
        unit = joined_unit(services)
        if unit is not None:
            return unit.db_service(cast("type[D]", self.service_type))
        return cast("D", services.db_service(self.service_type))
