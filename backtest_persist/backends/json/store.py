"""JsonStore: the rows of one domain in the files of a dump."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, cast

from backtest_persist.backends.json.folder import DumpFiles, Folder
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.rows import row_dates, to_row, to_text
from backtest_persist.backends.json.value_file import Stored, Write
from backtest_persist.core.domain import Domain
from backtest_persist.core.frames.row_list import RowList
from backtest_persist.core.payload import encoded_fields, is_deferred
from backtest_persist.core.row import Context, Row
from backtest_persist.errors import InvalidPayloadError, SettingsError
from backtest_persist.logger import LoggerService
from backtest_persist.settings import Settings

__all__ = ("JsonStore",)

_logger = LoggerService()

C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=Row)


class JsonStore(Generic[C, R]):
    """Keeps the rows of one domain in files; implements `core.store.Store`.

    The file of a row contains its fields as `rows` says; ids are computed from contexts, and dates are those of files.
    """

    def __init__(self, dump: DumpFiles, domain: Domain, settings: Callable[[], Settings]) -> None:
        self.dump = dump
        self._settings = settings
        self._domain = domain
        self._layout = Layout(domain)

    def allows_early_times(self) -> bool:
        """Whether an int may be an instant of 1970 to 1973: ``CC_ALLOW_EARLY_TIMES``."""
        return self._settings().allow_early_times

    def default_when(self) -> int | None:
        """Return the instant that a `when` left out means: none."""
        return None

    async def wait_for_init(self) -> None:
        """Prepare nothing: a directory is made by the first write, and swept on first use."""

    async def find(self, context: C) -> R | None:
        """Return the row of a context, a tombstone included, or None; `InvalidPayloadError` for a damaged file."""
        parts = context.parts()
        stored = await self.folder(parts).read(self._layout.name(parts))
        return None if stored is None else self._row(parts, stored)

    async def upsert(self, context: C, fields: Mapping[str, Any]) -> R:
        """Replace the file of a row, atomically; returns the row."""
        document = await self._replace(context, fields)
        from_document = self._domain.row_type.from_document
        if is_deferred(fields):
            return cast("R", await asyncio.to_thread(from_document, document))
        return cast("R", from_document(document))

    async def write(self, context: C, fields: Mapping[str, Any]) -> None:
        """Replace the file of a row, atomically."""
        await self._replace(context, fields)

    async def _replace(self, context: C, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the file of a row; returns the document of the row."""
        self._domain.row_type.check_whole(context, fields)
        parts = context.parts()
        if not is_deferred(fields):
            times = await self.folder(parts).write_one(self.to_write(parts, fields))
            return {**context.to_filter(), **fields, **row_dates(parts, times)}
        encoded: list[tuple[Write, Mapping[str, Any]]] = []

        async def encode() -> Write:
            encoded.append(await asyncio.to_thread(self._encode, parts, fields))
            return encoded[0][0]

        times = await self.folder(parts).write_one(encode)
        return {**context.to_filter(), **encoded[0][1], **row_dates(parts, times)}

    async def claim(self, context: C, fields: Mapping[str, Any]) -> bool:
        """Write the file of a row unless there is one that is not a tombstone, while no other process may write."""
        self._domain.row_type.check_whole(context, fields)
        parts = context.parts()
        return await self.folder(parts).claim(self.to_write(parts, fields))

    async def upsert_many(self, writes: Sequence[tuple[C, Mapping[str, Any]]], *, replace: bool) -> int:
        """Store many rows, those of one directory in order and each atomically; returns how many are new."""
        by_folder: dict[Folder, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for context, fields in writes:
            self._domain.row_type.check_whole(context, fields)
            parts = context.parts()
            by_folder.setdefault(self.folder(parts), []).append((parts, fields))
        if not any(is_deferred(fields) for _, fields in writes):
            encoded = [(folder, [self.to_write(*row) for row in rows]) for folder, rows in by_folder.items()]
            return sum([await folder.write(batch, replace=replace) for folder, batch in encoded])

        def encode_all() -> dict[Folder, list[Write]]:
            return {folder: [self._encode(*row)[0] for row in rows] for folder, rows in by_folder.items()}

        batches: dict[Folder, list[Write]] = {}

        async def encode(folder: Folder) -> list[Write]:
            if not batches:  # of all, before the first is stored
                batches.update(await asyncio.to_thread(encode_all))
            return batches[folder]

        return sum([await folder.write(partial(encode, folder), replace=replace) for folder in by_folder])

    async def soft_remove(self, context: C) -> bool:
        """Turn the file of a row into a tombstone; False when there is no row."""
        parts = context.parts()
        return await self.folder(parts).remove(self._layout.name(parts))

    async def select(self, selection: Mapping[str, Any], *, newest: int | None = None) -> RowList[R]:
        """Return the rows of a directory, without tombstones, oldest first, or the newest of them.

        What is damaged is left out, and named in a warning.

        `SettingsError` when `selection` does not name the directory: files cannot be asked across directories.
        """
        if missing := [name for name in self._layout.directory_fields if name not in selection]:
            raise SettingsError(
                f"JSON files of {self._domain.name} are listed by {', '.join(self._layout.directory_fields)}; "
                f"select {', '.join(missing)} as well."
            )
        rows: RowList[R] = RowList((), self._domain.row_type)
        found, damaged = await self.folder(selection).read_all()
        for name, stored in found:
            fields = self._layout.parse_name(name)
            if fields is None or stored.removed:
                continue
            context = {**fields, **selection}
            if all(context[field] == value for field, value in fields.items()):
                try:
                    rows.append(self._row(context, stored))
                except InvalidPayloadError as error:
                    damaged.append((name, error))
        _logger.unreadable(self.folder(selection).describe(), damaged)
        return rows if newest is None else rows[max(0, len(rows) - newest) :]

    def folder(self, context: Mapping[str, Any]) -> Folder:
        """Return the directory of a context, which may leave out the fields that name only files."""
        return self.dump.folder(self._domain.name, **{name: context[name] for name in self._layout.directory_fields})

    def name(self, context: Mapping[str, Any]) -> str:
        """Return the name of the value of a context in its folder."""
        return self._layout.name(context)

    def to_write(self, context: Mapping[str, Any], fields: Mapping[str, Any]) -> Write:
        """Return what stores the row of a context, with these fields, in its folder."""
        when = int(fields["when"]) if self._layout.timed else None
        return Write(self._layout.name(context), to_text(self._layout, fields), when)

    def _encode(self, context: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[Write, Mapping[str, Any]]:
        fields = encoded_fields(fields)
        return self.to_write(context, fields), fields

    def _row(self, context: Mapping[str, Any], stored: Stored) -> R:
        in_order = {name: context[name] for name in self._domain.context_type.model_fields}
        return cast("R", to_row(self._layout, in_order, stored))
