"""The result of the demo: the account, the trades, and what is stored of each domain."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from anyio.to_thread import run_sync

from backtest_persist import Container, Mode
from backtest_persist.core.domain import Family
from backtest_persist.demo.strategy import Session, Signal
from backtest_persist.operations.domains import DomainServices, domain_services
from backtest_persist.operations.transfer.scan import scan

__all__ = ("Backend", "DomainCounts", "Result", "count_domains", "count_files")

Backend = Literal["mongo", "json", "dummy"]


@dataclass(frozen=True)
class DomainCounts:
    """The documents and ids of one domain in the whole database, and the operations of this process."""

    documents: int
    ids: int
    reads: int
    writes: int
    lookups: int
    hits: int


@dataclass
class Result:
    """The result of a run."""

    symbol: str
    mode: Mode
    frame: str
    bars: int
    """The number of bars that the session has."""
    total_bars: int
    killed_after: int | None
    """The number of bars that had ended when the child was killed; None without a kill."""
    resumed_from: int
    """The number of bars that were stored when this process went on with the run."""
    is_same: bool | None
    """Whether session and trades are those of the same run without a kill; None without a kill."""
    widened: int
    """The number of bars of the sample that were widened to contain their body."""
    first_close: Decimal
    last_close: Decimal
    backend: Backend
    temporary: bool
    """Whether the state is deleted at the end of this process."""
    data_dir: Path | None
    session: Session
    trades: list[Signal]
    domains: list[dict[str, DomainCounts]]
    """The counts of MongoDB and Redis by domain, in groups; empty with another backend."""
    files: list[dict[str, int]]
    """The number of JSON files by domain, in groups; empty with another backend."""
    seconds: float

    @property
    def new_bars(self) -> int:
        """The number of bars that this process has added."""
        return self.bars - self.resumed_from


async def count_domains(container: Container) -> list[dict[str, DomainCounts]]:
    """Count the documents and ids of the whole database, and the reads and writes of this process, by domain."""
    return [{domain.name: await _count(domain) for domain in family} for family in _families(container)]


async def count_files(container: Container, directory: Path) -> list[dict[str, int]]:
    """Count the values of a dump by domain."""
    layouts = {domain.name: domain.layout for domain in domain_services(container)}
    found = (await run_sync(scan, directory, layouts)).found
    return [{domain.name: len(found[domain.name]) for domain in family} for family in _families(container)]


async def _count(domain: DomainServices) -> DomainCounts:
    stats = domain.db.stats
    documents, ids = await domain.db.count(), await domain.cache.size()
    return DomainCounts(documents, ids, stats.reads, stats.writes, stats.lookups, stats.hits)


def _families(container: Container) -> Iterator[list[DomainServices]]:
    """Iterate over the domains in groups that are stored alike."""
    for family in Family:
        yield [domain for domain in domain_services(container) if domain.family is family]
