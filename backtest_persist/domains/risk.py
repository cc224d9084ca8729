"""Risk: the open positions under one risk profile on an exchange."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from backtest_persist.contracts import When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import encode_list, encode_or_defer
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = ("RISK", "PersistRiskInstance", "RiskCacheService", "RiskContext", "RiskDbService", "RiskRow")


class RiskContext(Context):
    """Identifies the positions of a risk profile."""

    risk_name: Name
    exchange_name: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``risk_cache``."""
        return join_key(self.exchange_name, self.risk_name)


class RiskRow(RiskContext, Row):
    """One document of ``risk-items``."""

    positions: list[Any]
    when: Timestamp


class RiskCacheService(base_map("risk_cache", -1)):
    """Remembers which document holds the positions of a risk profile."""

    async def has_risk_id(self, risk_name: str, exchange_name: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(RiskContext(risk_name=risk_name, exchange_name=exchange_name).cache_key)

    async def get_risk_id(self, risk_name: str, exchange_name: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(RiskContext(risk_name=risk_name, exchange_name=exchange_name).cache_key)

    async def set_risk_id(self, row: RiskRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class RiskDbService(DbService[RiskContext, RiskRow]):
    """Reads and writes ``risk-items``."""

    collection = "risk-items"

    async def upsert(
        self, risk_name: str, exchange_name: str, positions: Sequence[Any], when: When | None = None
    ) -> RiskRow:
        """Replace the positions in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(*self.content(risk_name, exchange_name, positions, when))

    def content(
        self, risk_name: str, exchange_name: str, positions: Sequence[Any], when: When | None
    ) -> Content[RiskContext]:
        """Return the context and the fields that a write stores."""
        context = RiskContext(risk_name=risk_name, exchange_name=exchange_name)
        what = f"{self.collection} ({context.describe()})"
        fields = {"positions": encode_or_defer(partial(encode_list, positions, what)), "when": self.wire_when(when)}
        return context, fields

    async def find_by_context(self, risk_name: str, exchange_name: str) -> RiskRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(RiskContext(risk_name=risk_name, exchange_name=exchange_name))


class PersistRiskInstance(PersistInstance[RiskDbService]):
    """Keeps the open positions under a risk profile."""

    def __init__(self, risk_name: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.risk_name = risk_name
        self.exchange_name = exchange_name

    async def read_position_data(self, when: When | None = None) -> list[Any]:
        """The positions known at `when` (aware datetime, or ms UTC); [] when absent or later than that."""
        horizon = self.db.to_millis(when)
        row = await self.db.find_by_context(self.risk_name, self.exchange_name)
        return row.positions if row is not None and row.when <= horizon else []

    async def write_position_data(self, positions: Sequence[Any], when: When | None = None) -> None:
        """Replace the positions; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(*self.db.content(self.risk_name, self.exchange_name, positions, when))


RISK = Domain(
    "risk",
    Family.LATEST_VALUE,
    RiskCacheService,
    RiskDbService,
    PersistRiskInstance,
    FileLayout("data/risk", (("risk_name", "exchange_name"),), fixed_file="positions"),
    noun="position",
)
