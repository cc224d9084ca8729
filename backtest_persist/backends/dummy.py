"""The backend that keeps nothing: reads find nothing, writes are checked and vanish."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from backtest_persist.backends.services import AdapterFactories, StoreServices
from backtest_persist.contracts import CandleData
from backtest_persist.core.candles.ohlcv import NUMBERS, Series, candle_columns
from backtest_persist.core.candles.series_summary import SeriesSummary
from backtest_persist.core.change import Part
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.lease import LEASE_SECONDS, check_times
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.row import Context, Row
from backtest_persist.domains import DOMAINS
from backtest_persist.domains.candle import CANDLE, CandleContext, CandleRow
from backtest_persist.errors import LeaseLostError
from backtest_persist.logger import LoggerService
from backtest_persist.settings import Settings, deferred

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("DummyBackend",)

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)

_NO_ID = "0" * 24
_NEVER = datetime.fromtimestamp(0, UTC)


class DummyStore(Generic[C, R]):
    """Keeps no row; implements `core.store.Store`."""

    def __init__(self, row_type: type[R], settings: Callable[[], Settings]) -> None:
        self._row_type = row_type
        self._settings = settings

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self._settings().allow_early_times

    def default_when(self) -> int | None:
        """Return the instant that a `when` left out means: none."""
        return None

    async def wait_for_init(self) -> None:
        """Prepare nothing."""

    async def find(self, context: C) -> R | None:
        """Find nothing."""
        return None

    async def upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """Return the row that a store would have kept."""
        self._row_type.check_whole(context, fields)
        if is_deferred(fields):
            fields = await asyncio.to_thread(encoded_fields, fields)
        dates = {"_id": _NO_ID, "createDate": _NEVER, "updatedDate": _NEVER}
        return self._row_type.from_document({**context.to_filter(), **fields, **dates})

    async def write(self, context: C, fields: Mapping[str, Any]) -> None:
        """Check what a store would have kept."""
        await self.upsert(context, fields)

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Keep nothing; nobody has claimed it before."""
        self._row_type.check_whole(context, fields)
        return True

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Keep none; all would have been new."""
        for context, fields in writes:
            self._row_type.check_whole(context, fields)
        if any(is_deferred(fields) for _, fields in writes):
            await asyncio.to_thread(lambda: [encoded_fields(fields) for _, fields in writes])
        return len(writes)

    async def soft_remove(self, context: C) -> bool:
        """Find nothing to remove."""
        return False

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> RowList[R]:
        """Find nothing."""
        return RowList((), self._row_type)


class DummyCandleStore(DummyStore[CandleContext, CandleRow]):
    """Keeps no candle; all that are written would have been new. Implements `CandleStore`."""

    remembers_ids = False
    """There is no Redis to tell ids."""

    def __init__(self, row_type: type[CandleRow], settings: Callable[[], Settings]) -> None:
        super().__init__(row_type, settings)
        self.logger = LoggerService()

    async def find_rows(self, series: Series, start: int, end: int) -> RowList[CandleRow]:
        """Find nothing."""
        return RowList((), CandleRow)

    async def find_data(self, series: Series, start: int, end: int) -> list[CandleData]:
        """Find nothing."""
        return []

    async def find_columns(self, series: Series, start: int | None, end: int | None) -> "dict[str, NDArray[Any]]":
        """Find nothing."""
        return candle_columns([])

    async def find_last_rows(self, series: Series, limit: int, latest: int) -> RowList[CandleRow]:
        """Find nothing."""
        return RowList((), CandleRow)

    async def find_last_data(self, series: Series, limit: int, latest: int) -> list[CandleData]:
        """Find nothing."""
        return []

    async def find_gaps(self, series: Series, start: int, end: int) -> list[tuple[int, int]]:
        """Return the whole range."""
        return [(start, end)] if start < end else []

    async def find_bounds(self, series: Series, since: int | None = None) -> tuple[int, int] | None:
        """Find nothing."""
        return None

    async def list_series(self, names: Mapping[str, str]) -> list[SeriesSummary]:
        """Find nothing."""
        return []

    async def find_numbers(
        self, series: Series, times: Sequence[int], *, prepare: bool = True
    ) -> dict[int, Mapping[str, Any]]:
        """Find nothing."""
        return {}

    async def create_candle(self, context: CandleContext, candle: CandleData) -> CandleRow:
        """Return the row that a store would have kept."""
        return await self.upsert(context, {name: candle[name] for name in NUMBERS})

    async def insert_candles(self, series: Series, candles: Sequence[CandleData]) -> int:
        """Keep none; all would have been new."""
        return len(candles)

    async def delete_range(self, series: Series, start: int | None, end: int | None) -> int:
        """Find nothing to delete."""
        return 0


class DummyCommitter:
    """Stores no unit of work; implements `core.change.Committer`."""

    async def wait_for_init(self) -> None:
        """Prepare nothing."""

    async def commit(self, parts: Sequence[Part]) -> None:
        """Store nothing."""

    async def close(self) -> None:
        """Wait for nothing."""


class DummyLease:
    """A lease that is always free, as nobody writes."""

    def __init__(self, context: LeaseContext) -> None:
        self.context = context
        self.epoch = 0
        """The number of times that this lease was taken."""

    async def __aenter__(self) -> Self:
        self.epoch += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    def lost(self) -> LeaseLostError | None:
        """Return None: it is never lost."""
        return None


class DummyBackend(AdapterFactories):
    """Builds adapters that keep nothing: for dry runs, and to see what persistence costs; see `contracts.Backend`.

    What is written is checked as any backend checks it. Of the settings, by default those of the environment, it needs
    ``CC_ALLOW_EARLY_TIMES``.
    """

    def __init__(
        self,
        domains: Iterable[Domain] = DOMAINS,
        *,
        settings: Settings | Mapping[str, Any] | Callable[[], Settings] | None = None,
    ) -> None:
        known, given = tuple(domains), deferred(settings)

        def db_service(domain: Domain) -> DbService[Any, Any]:
            store_type: type[Any] = DummyCandleStore if domain is CANDLE else DummyStore[Any, Any]
            return domain.db_service(store_type(domain.row_type, given))

        super().__init__(StoreServices(known, db_service), known)

    def committer(self, lease: DummyLease | None = None) -> DummyCommitter:
        """Return what lets units of work vanish."""
        return DummyCommitter()

    def lease(self, context: LeaseContext, *, wait: float = 0.0, duration: float = LEASE_SECONDS) -> DummyLease:
        """Return a lease that is free, however often it is taken."""
        check_times(wait, duration)
        return DummyLease(context)
