"""The registry that a runner talks to: one typed entry for each domain, and one place to choose the backend."""

import asyncio
import inspect
import os
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, ClassVar, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from backtest_persist import contracts
from backtest_persist.backends.dummy import DummyBackend
from backtest_persist.backends.json.backend import JsonBackend
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.backends.services import AtomicBackend
from backtest_persist.connections import joined
from backtest_persist.container import Container
from backtest_persist.contracts import CandleInterval
from backtest_persist.core.domain import Domain
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.domains.candle import CandleDbService
from backtest_persist.errors import SettingsError
from backtest_persist.mode import Mode
from backtest_persist.run.candle_memory import CandleMemories
from backtest_persist.run.checkpoint import Checkpoint
from backtest_persist.run.run import Run

__all__ = ("Entry", "Registry")

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T", bound=contracts.Adapter)


class Entry(Generic[P, T]):
    """One domain of a registry: `use` says which class is behind it, a call gives the adapter of a context."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._factory: Callable[..., T] | None = None
        self._backend = ""
        self.is_replaced = False
        """Whether another class is behind this domain than that of the backend of the registry."""
        self._instances: dict[Hashable, T] = {}
        self._ready: set[Hashable] = set()
        self._attempts: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, asyncio.Task[T]]] = (
            WeakKeyDictionary()
        )
        """The initialisations in progress, which those who ask for the same adapter share."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the initialised adapter of a context: one per context, initialised once, until it is disposed.

        After a failed initialisation the next call tries again. `InvalidKeyError` for a part of the context that no
        backend could keep, `SettingsError` if the backend lacks this domain.
        """
        context = self._domain.checked(self._domain.signature.bind(*args, **kwargs).arguments)
        if context in self._ready:
            return self._instances[context]
        attempts = self._attempts.setdefault(asyncio.get_running_loop(), {})
        attempt = attempts.get(context)
        if attempt is None:
            attempt = attempts[context] = asyncio.create_task(self._initialise(context))
            attempt.add_done_callback(lambda _: attempts.pop(context))
        return await joined(attempt)

    async def _initialise(self, context: Hashable) -> T:
        instances, ready = self._instances, self._ready  # `use` may swap them while this waits
        if self._factory is None:
            raise SettingsError(
                f"{self._backend} keeps no {self._domain.name}; give it that domain, or say what does: "
                f"persist.{self._domain.name}.use(MyClass)."
            )
        instance = instances.setdefault(context, self._factory(*cast("tuple[Any, ...]", context)))
        await instance.wait_for_init(True)
        ready.add(context)
        if hasattr(instance, "on_dispose"):
            cast("Any", instance).on_dispose = partial(self._forget, context)
        return instance

    def _forget(self, context: Hashable, instance: T) -> None:
        if self._instances.get(context) is instance:
            del self._instances[context]
            self._ready.discard(context)

    def use(self, factory: Callable[..., T]) -> None:
        """Let another class (or factory) be behind this domain; adapters that were handed out are forgotten.

        It is called with the context, by position.
        """
        self._factory = factory
        self.is_replaced = True
        self.clear()

    def use_backend(self, backend: contracts.Backend) -> None:
        """Let a backend be behind this domain; without an adapter of it a call is a `SettingsError`."""
        self._factory = cast("Callable[..., T] | None", backend.get(self._domain.name))
        self._backend = type(backend).__name__
        self.is_replaced = False
        self.clear()

    def clear(self) -> None:
        """Forget the adapters that were handed out."""
        self._instances = {}
        self._ready = set()
        self._attempts = WeakKeyDictionary()


def declared() -> NoReturn:
    """Stand for the body of a method that `entry` takes for its signature alone."""
    raise TypeError("an entry is called on a registry")


class entry(Generic[P, T]):  # noqa: N801  # a decorator
    """Declares an entry of the registry by a method of its name, whose parameters and result are the entry's."""

    def __init__(self, declared: Callable[Concatenate[Any, P], T]) -> None:
        self._name = declared.__name__
        self.signature = inspect.signature(declared)
        self.__doc__ = declared.__doc__

    @overload
    def __get__(self, registry: None, owner: type["Registry"]) -> "entry[P, T]": ...
    @overload
    def __get__(self, registry: "Registry", owner: type["Registry"]) -> Entry[P, T]: ...
    def __get__(self, registry: "Registry | None", owner: type["Registry"]) -> "entry[P, T] | Entry[P, T]":
        return self if registry is None else cast("Entry[P, T]", registry.entries[self._name])


class Registry:
    """One entry for each domain, with one backend behind them; several registries can live in one process.

    MongoDB, through `container` (the process-wide one when None), is behind them until another backend is chosen. The
    domains are those of the container; an entry of a domain of your own is an attribute of its name, and
    ``registry.entry(MY_DOMAIN)`` to a type checker.
    """

    _bound: ClassVar[Container | None] = None

    def __init__(self, container: Container | None = None) -> None:
        if container is None and Registry._bound is None:
            raise SettingsError("This registry knows no container; import backtest_persist, or pass one.")
        self._container = container or cast("Container", Registry._bound)
        self.entries: dict[str, Entry[..., Any]] = {domain.name: Entry(domain) for domain in self._container.domains}
        """The entries by the names of their domains."""
        for name, own in self.entries.items():
            if not hasattr(Registry, name):
                setattr(self, name, own)
        self.use_mongo()

    @entry
    def breakeven(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.BreakevenAdapter:
        """Return the adapter of the breakeven mark of signals."""
        declared()

    @entry
    def candle(self, symbol: str, interval: CandleInterval, exchange_name: str) -> contracts.CandleAdapter:
        """Return the adapter of a series of candles."""
        declared()

    @entry
    def dictionary(self, signal_id: str, dictionary_name: str) -> contracts.DictionaryAdapter:
        """Return the adapter of a dictionary of a signal."""
        declared()

    @entry
    def interval(self, bucket: str) -> contracts.IntervalAdapter:
        """Return the adapter of markers of what is done once per interval."""
        declared()

    @entry
    def log(self) -> contracts.LogAdapter:
        """Return the adapter of the log of decisions."""
        declared()

    @entry
    def measure(self, bucket: str) -> contracts.MeasureAdapter:
        """Return the adapter of answers of outside services."""
        declared()

    @entry
    def memory(self, signal_id: str, bucket_name: str) -> contracts.MemoryAdapter:
        """Return the adapter of what a strategy remembers about a signal."""
        declared()

    @entry
    def notification(self, backtest: bool | Mode) -> contracts.NotificationAdapter:
        """Return the adapter of the notifications of a mode."""
        declared()

    @entry
    def partial(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.PartialAdapter:
        """Return the adapter of the levels that signals have passed."""
        declared()

    @entry
    def recent(
        self, symbol: str, strategy_name: str, exchange_name: str, frame_name: str, backtest: bool | Mode
    ) -> contracts.RecentAdapter:
        """Return the adapter of the latest public signal."""
        declared()

    @entry
    def risk(self, risk_name: str, exchange_name: str) -> contracts.RiskAdapter:
        """Return the adapter of the positions under a risk profile."""
        declared()

    @entry
    def schedule(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.ScheduleAdapter:
        """Return the adapter of the signal that waits for its price."""
        declared()

    @entry
    def session(
        self, strategy_name: str, exchange_name: str, frame_name: str, symbol: str, backtest: bool | Mode
    ) -> contracts.SessionAdapter:
        """Return the adapter of the state of a run."""
        declared()

    @entry
    def signal(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.SignalAdapter:
        """Return the adapter of the open signal."""
        declared()

    @entry
    def state(self, signal_id: str, bucket_name: str) -> contracts.StateAdapter:
        """Return the adapter of the state of a signal."""
        declared()

    @entry
    def storage(self, backtest: bool | Mode) -> contracts.StorageAdapter:
        """Return the adapter of the signals of a mode."""
        declared()

    @entry
    def strategy(self, symbol: str, strategy_name: str, exchange_name: str) -> contracts.StrategyAdapter:
        """Return the adapter of what a strategy has yet to do."""
        declared()

    def entry(self, domain: Domain) -> Entry[..., Any]:
        """Return the entry of a domain; `SettingsError` if the container has no such domain."""
        found = self.entries.get(domain.name)
        if found is None:
            raise SettingsError(
                f"This registry has no domain {domain.name!r}: Registry(Container(settings, domains=[...]))."
            )
        return found

    # --- units of work ---

    @overload
    def run(
        self,
        *,
        strategy: str,
        exchange: str,
        symbol: str,
        mode: Mode,
        frame: str = ...,
        commit_every: int | None = ...,
        lease_wait: float = ...,
        atomic: bool = ...,
        restart: bool = ...,
    ) -> Run[dict[str, Any]]: ...
    @overload
    def run(
        self,
        *,
        strategy: str,
        exchange: str,
        symbol: str,
        mode: Mode,
        session: Callable[[], S],
        frame: str = ...,
        commit_every: int | None = ...,
        lease_wait: float = ...,
        atomic: bool = ...,
        restart: bool = ...,
    ) -> Run[S]: ...
    def run(
        self,
        *,
        strategy: str,
        exchange: str,
        symbol: str,
        mode: Mode,
        session: Callable[[], Any] = dict,
        frame: str = "",
        commit_every: int | None = None,
        lease_wait: float = 0.0,
        atomic: bool = True,
        restart: bool = False,
    ) -> Run[Any]:
        """Return a run of a strategy, whose bars are stored as a whole: ``async with persist.run(...) as run:``.

        See `Run`. `session` makes the state of the strategy at its beginning: a pydantic model class, or what returns a
        dict. `frame` names the part of the history that a backtest takes; live trading has none.

        `commit_every` is how many bars are stored together: by default 1 in paper and live mode, and 64 or those of
        250 ms in a backtest; fewer if they take more than about 8 MiB. `lease_wait` is how many seconds to wait for
        another run of the same.

        `restart` begins with a new session. Signals, lists and the log of the runs before stay, and an entry of the log
        whose id comes again is kept as it is; a backtest that is to begin from nothing takes another frame.

        With ``atomic=False`` the writes of a bar are stored one by one, the session last, for a MongoDB without
        transactions: after a kill some writes may be stored of a bar that is then done again.
        """
        context = LeaseContext(
            strategy_name=strategy, exchange_name=exchange, symbol=symbol, frame_name=frame, mode=mode
        )
        return Run(
            self._atomic_backend("a run"),
            context,
            session,
            commit_every=commit_every,
            lease_wait=lease_wait,
            atomic=atomic,
            restart=restart,
            memories=self._memories,
        )

    def checkpoint(self) -> Checkpoint:
        """Return a unit of work: ``async with persist.checkpoint():`` stores all writes in the block, or none."""
        return Checkpoint(self._atomic_backend("a checkpoint"))

    @property
    def takes_units_of_work(self) -> bool:
        """Whether what is behind all domains stores units of work, as `run` and `checkpoint` need it."""
        return self._is_atomic and not any(own.is_replaced for own in self.entries.values())

    @property
    def _is_atomic(self) -> bool:
        return all(hasattr(self._backend, name) for name in ("services", "committer", "lease"))

    def _atomic_backend(self, what: str) -> AtomicBackend:
        if replaced := sorted(name for name, own in self.entries.items() if own.is_replaced):
            raise SettingsError(
                f"{what.capitalize()} stores all domains as one, but {', '.join(replaced)} is kept by a class of its "
                "own; choose one backend for all: persist.use(...)."
            )
        if not self._is_atomic:
            raise SettingsError(
                f"{type(self._backend).__name__} stores no units of work, which {what} needs: a backend that does has "
                "services, committer and lease (see backends.services.AtomicBackend)."
            )
        return cast("AtomicBackend", self._backend)

    @classmethod
    def bind(cls, container: Container) -> None:
        """Set the container of registries that are given none."""
        cls._bound = container

    def use(self, backend: contracts.Backend) -> None:
        """Let a backend be behind all domains; adapters that were handed out are forgotten.

        An adapter of a domain that the backend lacks is a `SettingsError` when it is asked for.
        """
        self._backend = backend
        self._memories = CandleMemories(
            lambda: cast("AtomicBackend", backend).services.db_service(CandleDbService),
            lambda: self._container.settings.candle_memory_mb * 1024 * 1024,
        )
        for own in self.entries.values():
            own.use_backend(backend)

    def use_mongo(self) -> None:
        """Let MongoDB, with Redis in front, be behind all domains."""
        self.use(MongoBackend(self._container))

    def use_json(self, directory: str | os.PathLike[str] = "./dump") -> None:
        """Let JSON files below `directory` be behind all domains; see `JsonBackend`."""
        self.use(JsonBackend(directory, self._container.domains, settings=lambda: self._container.settings))

    def use_dummy(self) -> None:
        """Let nothing be behind all domains: reads find nothing, writes vanish; see `DummyBackend`."""
        self.use(DummyBackend(self._container.domains, settings=lambda: self._container.settings))
