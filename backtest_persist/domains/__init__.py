"""The things that are stored: one module per domain, each read from top to bottom.

A module holds, in this order: the context (the unique index), the row (one document), the cache service (context key
to ``_id``, in Redis), the db service (MongoDB) and the persist adapter that strategy code calls.

**The latest value of a context**

- `signal`: the open signal of a symbol, a strategy and an exchange
- `schedule`: the signal that waits for its price
- `strategy`: what a strategy has yet to do
- `risk`: the positions under a risk profile
- `partial`: the profit and loss levels a signal has passed
- `breakeven`: whether the stop of a signal was moved to its entry price
- `recent`: the latest public signal, per mode
- `state`: the free state of a signal
- `dictionary`: snapshots of what a strategy keeps about a signal
- `session`: the free state of a strategy's run, per mode

**Keyed entries with tombstones**

- `measure`: cached answers of outside services
- `interval`: markers of what was done once per interval
- `memory`: what a strategy remembers about a signal

**Lists**

- `storage`: all signals, per mode
- `notification`: what happened, per mode
- `log`: decisions, append-only

**An immutable series**

- `candle`: OHLCV candles
"""

from collections.abc import Iterable

from backtest_persist.core.domain import Domain
from backtest_persist.core.lease_document import LEASES
from backtest_persist.domains.breakeven import BREAKEVEN
from backtest_persist.domains.candle import CANDLE
from backtest_persist.domains.dictionary import DICTIONARY
from backtest_persist.domains.interval import INTERVAL
from backtest_persist.domains.log import LOG
from backtest_persist.domains.measure import MEASURE
from backtest_persist.domains.memory import MEMORY
from backtest_persist.domains.notification import NOTIFICATION
from backtest_persist.domains.partial import PARTIAL
from backtest_persist.domains.recent import RECENT
from backtest_persist.domains.risk import RISK
from backtest_persist.domains.schedule import SCHEDULE
from backtest_persist.domains.session import SESSION
from backtest_persist.domains.signal import SIGNAL
from backtest_persist.domains.state import STATE
from backtest_persist.domains.storage import STORAGE
from backtest_persist.domains.strategy import STRATEGY
from backtest_persist.errors import SettingsError

__all__ = ("DOMAINS", "with_own")

DOMAINS: tuple[Domain, ...] = (
    SIGNAL,
    SCHEDULE,
    STRATEGY,
    RISK,
    PARTIAL,
    BREAKEVEN,
    RECENT,
    STATE,
    DICTIONARY,
    SESSION,
    MEASURE,
    INTERVAL,
    MEMORY,
    STORAGE,
    NOTIFICATION,
    LOG,
    CANDLE,
)
"""All domains of the package, family by family; whatever goes through all of them reads this."""


def with_own(domains: Iterable[Domain]) -> tuple[Domain, ...]:
    """Return all domains of the package and these; `SettingsError` for those that would share what is stored."""
    known = list(DOMAINS)
    for domain in domains:
        if domain.collection == LEASES.collection:
            raise SettingsError(
                f"The domain {domain.name!r} has the collection of the leases ({domain.collection}); choose another."
            )
        for other in known:
            for what, mine, theirs in (
                ("name", domain.name, other.name),
                ("collection", domain.collection, other.collection),
                ("Redis namespace", domain.cache_service.connection_key, other.cache_service.connection_key),
                ("class of the db service", domain.db_service, other.db_service),
                ("directory", domain.files.tree, other.files.tree),
            ):
                if mine == theirs:
                    raise SettingsError(
                        f"The domains {other.name!r} and {domain.name!r} have the same {what} ({mine}); choose another."
                    )
        known.append(domain)
    return tuple(known)
