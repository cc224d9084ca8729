"""The backend on JSON files, in the layout of the TypeScript framework."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backtest_persist.backends.json.candles import JsonCandleStore
from backtest_persist.backends.json.committer import JsonCommitter
from backtest_persist.backends.json.folder import DumpFiles
from backtest_persist.backends.json.lease import JsonLease
from backtest_persist.backends.json.store import JsonStore
from backtest_persist.backends.services import AdapterFactories, StoreServices
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain
from backtest_persist.core.lease import LEASE_SECONDS
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.domains import DOMAINS
from backtest_persist.domains.candle import CANDLE
from backtest_persist.settings import Settings, deferred

__all__ = ("JsonBackend",)


class JsonBackend(AdapterFactories):
    """Builds the adapters that keep everything in JSON files below a directory; see `contracts.Backend`.

    The files are where the TypeScript framework keeps its own, so each reads the dump of the other, except that the
    framework does not find what is written here under a name that has to be percent-encoded, such as a symbol with
    ``/``. A value is replaced atomically, and is on the disk when its write returns. A relative `directory` is below
    the working directory of this call. Needs Linux or macOS, and a file system that tells upper and lower case apart.
    Of the settings, by default those of the environment, it needs ``CC_ALLOW_EARLY_TIMES``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = "./dump",
        domains: Iterable[Domain] = DOMAINS,
        *,
        settings: Settings | Mapping[str, Any] | Callable[[], Settings] | None = None,
    ) -> None:
        known, given = tuple(domains), deferred(settings)
        self._dump = dump = DumpFiles(directory, known)

        def db_service(domain: Domain) -> DbService[Any, Any]:
            store_type = JsonCandleStore if domain is CANDLE else JsonStore[Any, Any]
            return domain.db_service(store_type(dump, domain, given))

        super().__init__(StoreServices(known, db_service), known)

    def committer(self, lease: JsonLease | None = None) -> JsonCommitter:
        """Return what stores a unit of work by the journal of the dump, with a lease only as long as that is held."""
        return JsonCommitter(self._dump, lease)

    def lease(self, context: LeaseContext, *, wait: float = 0.0, duration: float = LEASE_SECONDS) -> JsonLease:
        """Return the lease of a context, in a file of the dump."""
        return JsonLease(self._dump, context, wait=wait, duration=duration)
