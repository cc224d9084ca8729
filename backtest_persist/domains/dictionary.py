"""Dictionaries: snapshots of what a strategy keeps about a signal, by name."""

from backtest_persist.contracts import PayloadInput, When
from backtest_persist.core.base_map import base_map
from backtest_persist.core.db_service import Content, DbService
from backtest_persist.core.domain import Domain, Family, FileLayout
from backtest_persist.core.keys import Name, Timestamp, join_key
from backtest_persist.core.payload import Payload
from backtest_persist.core.persist_instance import PersistInstance, Services
from backtest_persist.core.row import Context, Row

__all__ = (
    "DICTIONARY",
    "DictionaryCacheService",
    "DictionaryContext",
    "DictionaryDbService",
    "DictionaryRow",
    "PersistDictionaryInstance",
)


class DictionaryContext(Context):
    """Identifies a dictionary of a signal."""

    signal_id: Name
    dictionary_name: Name

    @property
    def cache_key(self) -> str:
        """The Redis key inside ``dictionary_cache``."""
        return join_key(self.signal_id, self.dictionary_name)


class DictionaryRow(DictionaryContext, Row):
    """One document of ``dictionary-items``."""

    payload: Payload | None
    when: Timestamp


class DictionaryCacheService(base_map("dictionary_cache", -1)):
    """Remembers which document holds a dictionary of a signal."""

    async def has_dictionary_id(self, signal_id: str, dictionary_name: str) -> bool:
        """Whether Redis knows an id for this context."""
        return await self.has(DictionaryContext(signal_id=signal_id, dictionary_name=dictionary_name).cache_key)

    async def get_dictionary_id(self, signal_id: str, dictionary_name: str) -> str | None:
        """Return the id that Redis knows for this context, or None."""
        return await self.get(DictionaryContext(signal_id=signal_id, dictionary_name=dictionary_name).cache_key)

    async def set_dictionary_id(self, row: DictionaryRow) -> str:
        """Remember the id of a row; returns it."""
        await self.set(row.cache_key, row.id)
        return row.id


class DictionaryDbService(DbService[DictionaryContext, DictionaryRow]):
    """Reads and writes ``dictionary-items``."""

    collection = "dictionary-items"

    async def upsert(
        self, signal_id: str, dictionary_name: str, payload: PayloadInput | None, when: When | None = None
    ) -> DictionaryRow:
        """Replace the payload in one atomic write; `when` is the simulation time (aware datetime, or ms UTC)."""
        return await self.store.upsert(*self.content(signal_id, dictionary_name, payload, when))

    def content(
        self, signal_id: str, dictionary_name: str, payload: PayloadInput | None, when: When | None
    ) -> Content[DictionaryContext]:
        """Return the context and the fields that a write stores."""
        context = DictionaryContext(signal_id=signal_id, dictionary_name=dictionary_name)
        return context, {"payload": self.encoded(payload, context), "when": self.wire_when(when)}

    async def find_by_context(self, signal_id: str, dictionary_name: str) -> DictionaryRow | None:
        """Return the row of this context, or None."""
        return await self.store.find(DictionaryContext(signal_id=signal_id, dictionary_name=dictionary_name))


class PersistDictionaryInstance(PersistInstance[DictionaryDbService]):
    """Keeps a dictionary of a signal."""

    def __init__(self, signal_id: str, dictionary_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)
        self.signal_id = signal_id
        self.dictionary_name = dictionary_name

    async def read_dictionary_data(self, *, when: When | None = None) -> Payload | None:
        """The payload, or None when nothing is stored, or nothing yet at `when` (aware datetime, or ms UTC)."""
        horizon = self.db.to_horizon(when)
        row = await self.db.find_by_context(self.signal_id, self.dictionary_name)
        return row.payload if row is not None and row.when <= horizon else None

    async def write_dictionary_data(self, data: PayloadInput | None, when: When | None = None) -> None:
        """Replace the payload; an earlier `when` overwrites, so a backtest can start over."""
        await self.db.store.write(*self.db.content(self.signal_id, self.dictionary_name, data, when))

    async def dispose(self) -> None:
        """Let the registry forget this adapter; what is stored stays, and the adapter can still be used."""
        self._dispose()


DICTIONARY = Domain(
    "dictionary",
    Family.LATEST_VALUE,
    DictionaryCacheService,
    DictionaryDbService,
    PersistDictionaryInstance,
    FileLayout("dictionary", (("signal_id",), ("dictionary_name",)), ("dictionary_name",), stated_by="when"),
)
