"""Shared parts of the backends: db services over stores, and adapters over db services, for any list of domains."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from backtest_persist.contracts import Adapter
from backtest_persist.core.change import Committer
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.persist_instance import Services
from backtest_persist.errors import SettingsError

__all__ = ("AdapterFactories", "AtomicBackend", "StoreServices")

D = TypeVar("D", bound=DbService[Any, Any])


class StoreServices:
    """Holds one db service for each domain, over the stores of one backend."""

    def __init__(self, domains: Iterable[Domain], create: Callable[[Domain], DbService[Any, Any]]) -> None:
        self._services = {domain.db_service: create(domain) for domain in domains}

    def db_service(self, kind: type[D], /) -> D:
        """Return the db service of that class; `SettingsError` if there is no such domain here."""
        service = self._services.get(kind)
        if service is None:
            raise SettingsError(
                f"This backend has no {kind.__name__}; give it the domain: domains=[*DOMAINS, MY_DOMAIN]."
            )
        return cast("D", service)


class AtomicBackend(Protocol):
    """A backend that stores units of work, as a run and a checkpoint need it; those of this package are some."""

    @property
    def services(self) -> Services:
        """Return what gives its adapters their db services."""
        ...

    def committer(self, lease: Any = None) -> Committer:
        """Return what stores units of work, those of a run only as long as its lease is held."""
        ...

    def lease(self, context: LeaseContext, *, wait: float = 0.0) -> AbstractAsyncContextManager[Any]:
        """Return the lease of a context, which has `lost`; entering waits so many seconds for another holder."""
        ...


class AdapterFactories(Mapping[str, Callable[..., Adapter]]):
    """Maps the name of each domain to what builds its adapters; see `contracts.Backend`."""

    def __init__(self, services: Services, domains: Iterable[Domain]) -> None:
        self.services = services
        """The source of the db services of the adapters."""
        self.domains = tuple(domains)
        self._factories: dict[str, Callable[..., Adapter]] = {
            domain.name: partial(domain.adapter, ioc=services) for domain in self.domains
        }

    def __getitem__(self, name: str) -> Callable[..., Adapter]:
        return self._factories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)
