"""Leases and transactions of tests."""

from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.errors import PyMongoError

from backtest_persist import Container, Lease, Mode
from backtest_persist.backends.mongo import MongoBackend
from backtest_persist.domains.signal import PersistSignalInstance
from backtest_persist.run.candles import unit_over

__all__ = ("RUN", "commit", "lease_of", "silence", "store")

RUN: dict[str, Any] = {
    "strategy": "trend",
    "exchange": "binance",
    "symbol": "BTCUSDT",
    "frame": "2024",
    "mode": Mode.BACKTEST,
}
"""The run of the tests."""


def lease_of(container: Container, **options: Any) -> Lease:
    """Return the lease of that run, or of one that differs in some of its names."""
    names: dict[str, Any] = {**RUN, **options}
    return container.lease(**names)


def silence(lease: Lease) -> None:
    """Renew a lease no more, as its process does while it is paused."""
    held: Any = lease
    held._held._renewal.cancel()


async def commit(lease: Lease, write: Callable[[Any], Awaitable[Any]], *, fence_first: bool = True) -> None:
    """Carry out a transaction of the holder of a lease, and again as a whole as long as that may succeed."""
    while True:
        session = await lease.session()
        await lease.state.start_transaction(session)
        try:
            if fence_first:
                await lease.fence(session)
            await write(session)
            if not fence_first:
                await lease.fence(session)
            await session.commit_transaction()
        except PyMongoError as error:
            await lease.abandon_session()
            if not error.has_error_label("TransientTransactionError"):
                raise
        except BaseException:
            await lease.abandon_session()
            raise
        else:
            return


async def store(container: Container, lease: Lease, n: Any, *, size: int = 1) -> None:
    """Store a unit of work of so many documents under a lease."""
    backend = MongoBackend(container)
    unit = unit_over(backend)
    for key in range(size):
        await PersistSignalInstance(f"k{key}", "t", "e", ioc=unit).write_signal_data({"n": n})
    committer = backend.committer(lease)
    try:
        await committer.commit(unit.layers[-1].parts())
    finally:
        await committer.close()
