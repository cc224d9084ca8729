"""Bar: what a strategy writes and reads between two instants, stored as a whole."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

from backtest_persist.contracts import Adapter, CandleData, CandleInterval
from backtest_persist.core.domain import Domain
from backtest_persist.core.keys import checked_name, join_key
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.domains.breakeven import PersistBreakevenInstance
from backtest_persist.domains.candle import PersistCandleInstance
from backtest_persist.domains.dictionary import PersistDictionaryInstance
from backtest_persist.domains.interval import PersistIntervalInstance
from backtest_persist.domains.log import PersistLogInstance
from backtest_persist.domains.measure import PersistMeasureInstance
from backtest_persist.domains.memory import PersistMemoryInstance
from backtest_persist.domains.notification import PersistNotificationInstance
from backtest_persist.domains.partial import PersistPartialInstance
from backtest_persist.domains.recent import PersistRecentInstance
from backtest_persist.domains.risk import PersistRiskInstance
from backtest_persist.domains.schedule import PersistScheduleInstance
from backtest_persist.domains.signal import PersistSignalInstance
from backtest_persist.domains.state import PersistStateInstance
from backtest_persist.domains.storage import PersistStorageInstance
from backtest_persist.domains.strategy import PersistStrategyInstance
from backtest_persist.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backtest_persist.run.run import Run

__all__ = ("Bar", "RunAdapters")

S = TypeVar("S")


class RunAdapters:
    """The adapters of a run, bound to its strategy, exchange, symbol, frame and mode.

    They are the ordinary ones. In a bar a `when` that is left out means that of the bar, for writes and for reads, and
    a read sees what the bar has written. Between bars they only read.
    """

    def __init__(self, context: LeaseContext, services: Any) -> None:
        self._context = context
        self._services = services
        of_symbol = (context.symbol, context.strategy_name, context.exchange_name)
        backtest = context.mode.backtest
        self.signal = PersistSignalInstance(*of_symbol, ioc=services)
        self.schedule = PersistScheduleInstance(*of_symbol, ioc=services)
        self.strategy = PersistStrategyInstance(*of_symbol, ioc=services)
        self.partial = PersistPartialInstance(*of_symbol, ioc=services)
        self.breakeven = PersistBreakevenInstance(*of_symbol, ioc=services)
        self.recent = PersistRecentInstance(*of_symbol, context.frame_name, backtest, ioc=services)
        self.storage = PersistStorageInstance(backtest, ioc=services)
        self.notification = PersistNotificationInstance(backtest, ioc=services)
        self.log = PersistLogInstance(ioc=services)

    def risk(self, risk_name: str) -> PersistRiskInstance:
        """Return the adapter of the positions under a risk profile, which other runs of the exchange may share."""
        return PersistRiskInstance(risk_name, self._context.exchange_name, ioc=self._services)

    def measure(self, bucket: str) -> PersistMeasureInstance:
        """Return the adapter of answers of outside services."""
        return PersistMeasureInstance(bucket, ioc=self._services)

    def interval(self, bucket: str) -> PersistIntervalInstance:
        """Return the adapter of markers of what is done once."""
        return PersistIntervalInstance(bucket, ioc=self._services)

    def state(self, signal_id: str, bucket: str) -> PersistStateInstance:
        """Return the adapter of the state of a signal; its ids are global, see `Bar.new_id`."""
        return PersistStateInstance(signal_id, bucket, ioc=self._services)

    def memory(self, signal_id: str, bucket: str) -> PersistMemoryInstance:
        """Return the adapter of what is remembered about a signal; its ids are global, see `Bar.new_id`."""
        return PersistMemoryInstance(signal_id, bucket, ioc=self._services)

    def dictionary(self, signal_id: str, name: str) -> PersistDictionaryInstance:
        """Return the adapter of a dictionary of a signal; its ids are global, see `Bar.new_id`."""
        return PersistDictionaryInstance(signal_id, name, ioc=self._services)

    def candle(self, interval: CandleInterval) -> PersistCandleInstance:
        """Return the adapter of the candles of the symbol."""
        return PersistCandleInstance(self._context.symbol, interval, self._context.exchange_name, ioc=self._services)

    def domain(self, domain: Domain, *arguments: Any, **named: Any) -> Adapter:
        """Return an adapter of any domain, such as one of your own, with the arguments of its context."""
        given = domain.signature.bind(*arguments, **named).arguments
        return domain.adapter(*domain.checked(given), ioc=self._services)


class Bar(RunAdapters, Generic[S]):
    """One bar of a run, within ``async with run.bar(when) as bar:``; see `Run`."""

    def __init__(self, run: "Run[S]", when: int) -> None:
        self.__dict__.update(run.adapters.__dict__)
        self._run = run
        self._when = when
        self._numbers: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await self._run.begin(self)
        self._numbers.clear()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._run.end(self, error)

    @property
    def when(self) -> int:
        """The instant of the bar, in ms UTC."""
        return self._when

    @property
    def session(self) -> S:
        """The state of the strategy, which is stored with the bar."""
        return self._run.session

    @session.setter
    def session(self, value: S) -> None:
        self._run.session = value

    def new_id(self, kind: str = "signal") -> str:
        """Return an id that no other bar, run, strategy, symbol or mode gives; the same when the bar is done again.

        Ids are global: storage, notifications, the log, state, memory and dictionaries know no strategy, so that two
        strategies which both number their signals from 1 would overwrite each other's.
        """
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{self._run.id}:{join_key(checked_name(kind, 'kind'), self._when, number)}"

    @overload
    async def candles(
        self, interval: CandleInterval, limit: int, *, as_columns: Literal[False] = False
    ) -> list[CandleData]: ...
    @overload
    async def candles(
        self, interval: CandleInterval, limit: int, *, as_columns: Literal[True]
    ) -> "dict[str, NDArray[Any]]": ...
    async def candles(
        self, interval: CandleInterval, limit: int, *, as_columns: bool = False
    ) -> "list[CandleData] | dict[str, NDArray[Any]]":
        """Return the last `limit` stored candles of the symbol that have closed by the bar's `when`, oldest first.

        As columns they are numpy arrays by field: `timestamp` int64 (ms UTC), the others float64. They come from
        memory (``CC_CANDLE_MEMORY_MB``) and are copies. Missing candles are passed over.
        """
        if self._run.current is not self:
            raise SettingsError("This bar has ended; ask the bar that is open for candles.")
        return await self._run.candle_window(interval, limit, self._when, as_columns=as_columns)
