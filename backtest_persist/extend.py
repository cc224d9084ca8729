"""Everything that a module needs to declare a domain of your own.

A domain is a context (what identifies a document), a row (a document), a cache service, a db service, an adapter, and
one `Domain` value that ties them together. Give it to a container, ``Container(settings, domains=[FUNDING])``, and
``Registry(container)``, every backend, export and import, ``doctor``, ``verify``, ``rebuild_cache`` and the conformance
kit treat it as one of the package's.
"""

from backtest_persist.contracts import Payload, PayloadInput, When
from backtest_persist.core.base_map import BaseMap, base_map
from backtest_persist.core.candles.input import check_candles
from backtest_persist.core.candles.ohlcv import Series, checked_window
from backtest_persist.core.db_service import DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import (
    Flag,
    Name,
    Timestamp,
    checked_flag,
    checked_limit,
    checked_name,
    join_key,
    mode_word,
)
from backtest_persist.core.payload import encode_entries, encode_list, encode_payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row, to_horizon, to_millis, wire_when
from backtest_persist.core.soft_delete import RemovableRow, SoftDeleteDbService, living_payload
from backtest_persist.core.store import Store
from backtest_persist.domains import DOMAINS

__all__ = (
    "DOMAINS",
    "BaseMap",
    "Context",
    "DbService",
    "Domain",
    "Family",
    "FileLayout",
    "Flag",
    "Name",
    "Payload",
    "PayloadInput",
    "PersistInstance",
    "RemovableRow",
    "Row",
    "Series",
    "Services",
    "SoftDeleteDbService",
    "Store",
    "Timestamp",
    "When",
    "base_map",
    "check_candles",
    "checked_flag",
    "checked_limit",
    "checked_name",
    "checked_window",
    "encode_entries",
    "encode_list",
    "encode_payload",
    "join_key",
    "living_payload",
    "mode_word",
    "to_horizon",
    "to_millis",
    "wire_when",
)
