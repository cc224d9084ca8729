"""The directory of one context of a dump: values in files, replaced atomically, read and written under their names.

The files hold what the TypeScript framework writes, and nothing else; `sidecar` keeps the rest.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from anyio.to_thread import run_sync

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import (
    FileChange,
    cause_of,
    find_leftovers,
    read_file,
    remove_leftovers,
    sync_directory,
)
from backtest_persist.backends.json.journal import Journal
from backtest_persist.backends.json.layout import Layout
from backtest_persist.backends.json.locks import POLL_SECONDS, LoopLock, WriterThread, directory_lock
from backtest_persist.backends.json.paths import ContextPaths, value_stem
from backtest_persist.backends.json.sidecar import label_directory, record_directory
from backtest_persist.backends.json.value_file import (
    CreationClock,
    Plan,
    Stored,
    Times,
    ValueFile,
    Write,
    natural,
    value_stems,
)
from backtest_persist.core.change import ChangeKind
from backtest_persist.core.domain import Domain
from backtest_persist.domains import DOMAINS
from backtest_persist.errors import (
    InvalidPayloadError,
    SettingsError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
    WriteRejectedError,
)

__all__ = ("DumpFiles", "Folder", "FolderChange")

_BATCH_SIZE = 100
"""How many values of one call are written before other writers get the lock."""


_REMEMBERED_FOLDERS = 1000
"""How many folders a dump keeps that nobody uses, so that they need not be looked for again."""


class DumpFiles:
    """A dump directory, with what all its folders share: a thread that writes, a clock of creation times, a journal."""

    def __init__(self, root: str | os.PathLike[str], domains: Iterable[Domain] = DOMAINS) -> None:
        if "\0" in str(root):
            raise SettingsError(f"The directory of a dump must not contain a zero character: {str(root)!r}.")
        self.root = Path(root).absolute()
        self.writer = WriterThread()
        self.clock = CreationClock()
        self.journal = Journal(self.root)
        self._layouts = {domain.name: Layout(domain) for domain in domains}
        self._folders: WeakValueDictionary[Hashable, Folder] = WeakValueDictionary()
        self._remembered: dict[Hashable, Folder] = {}

    def folder(self, domain: str, **context: Any) -> "Folder":
        """Return the directory of a context, which has been checked by its domain; the same one while it is in use."""
        layout = self._layouts[domain]
        parts = {name: context[name] for name in layout.directory_fields}
        key = (domain, *parts.values())
        folder = self._folders.get(key)
        if folder is None:
            folder = self._folders.setdefault(key, Folder(self, layout, parts))
        if len(self._remembered) >= _REMEMBERED_FOLDERS:
            self._remembered.clear()
        self._remembered[key] = folder
        return folder


class Folder:
    """The directory of one context; its methods take names as they are, and do their I/O in threads."""

    def __init__(self, dump: DumpFiles, layout: Layout, context: Mapping[str, Any]) -> None:
        self._root, self._writer, self._clock, self._journal = dump.root, dump.writer, dump.clock, dump.journal
        self._layout = layout
        self._context = context
        self._paths = ContextPaths(dump.root, layout, context)
        described = ", ".join(f"{field}={value!r:.80}" for field, value in context.items())
        self._description = f"{layout.domain.name} ({described})"
        self.write_lock = LoopLock()
        """Keeps the next call of a loop from writing between the batches of this one."""
        self._swept = False

    def describe(self, name: str = "") -> str:
        """Return the domain and the context, for a message."""
        return f"{self._description}, {name!r:.80}" if name else self._description

    # --- reading ---

    async def read(self, name: str) -> Stored | None:
        """Read the value of a name, None when it does not exist; `InvalidPayloadError` for a damaged file."""
        return await run_sync(partial(self._read, name))

    async def read_many(self, names: Iterable[str], *, max_missing: int) -> tuple[list[tuple[str, Stored]], int]:
        """Read values until more than `max_missing` of them do not exist.

        Returns (name, value) of those that exist, in their order, and how many names were tried.
        """
        return await run_sync(self._read_many, names, max_missing)

    async def names(self) -> set[str]:
        """List the names of all values, in no order."""
        return await run_sync(self._names)

    async def read_all(self) -> "tuple[list[tuple[str, Stored]], list[tuple[str, InvalidPayloadError]]]":
        """Read the whole directory: (name, value), oldest first, and (name, error) of what is damaged."""
        return await run_sync(self._read_all)

    # --- writing ---

    async def write(
        self,
        writes: Sequence[Write] | Callable[[], Awaitable[Sequence[Write]]],
        *,
        replace: bool = True,
        flush: bool = True,
    ) -> int:
        """Store values, in order; without `replace` the first write wins. Returns how many were new.

        Values that are still being encoded have their place among the calls.

        Many values are written in batches, between which other processes and other folders may write; a cancelled call
        ends with the current batch. Without `flush` the values are on the disk only after the caller has called `sync`.

        Raises `WriteRejectedError` when the file system refuses, `StoreUnavailableError` when another process does not
        release the directory, and `WriteOutcomeUnknownError` for either when a part may have been stored.
        """
        new = 0
        async with self.write_lock.get():
            writes = await writes() if callable(writes) else writes
            for start in range(0, len(writes), _BATCH_SIZE):
                if start and flush:
                    await asyncio.sleep(2 * POLL_SECONDS)  # else no waiting process would ever find the lock free
                batch = writes[start : start + _BATCH_SIZE]
                written = await self._writer.run(partial(self._write, batch, replace, flush, stored_before=start))
                new += sum(effect.new for effect in written if effect is not None)
        return new

    async def write_one(self, write: Write | Callable[[], Awaitable[Write]]) -> Times:
        """Store a value, as `write` does; returns when it was first and last written."""
        async with self.write_lock.get():
            write = await write() if callable(write) else write
            (effect,) = await self._writer.run(partial(self._write, [write], replace=True, flush=True))
        assert effect is not None
        return effect.times

    async def claim(self, write: Write) -> bool:
        """Store a value unless there is one that is not a tombstone; returns whether it was stored."""
        async with self.write_lock.get():
            return await self._writer.run(partial(self._claim, write))

    async def remove(self, name: str) -> bool:
        """Turn the value of a name into a tombstone; False when it does not exist."""
        async with self.write_lock.get():
            return await self._writer.run(partial(self._remove, name))

    async def delete(self, names: Sequence[str]) -> int:
        """Delete the files of values, those of the framework as well, in batches; returns how many values there were.

        Raises what `write` does.
        """
        deleted = 0
        async with self.write_lock.get():
            for start in range(0, len(names), _BATCH_SIZE):
                if start:
                    await asyncio.sleep(2 * POLL_SECONDS)  # else no waiting process would ever find the lock free
                deleted += await self._writer.run(
                    partial(self._delete, names[start : start + _BATCH_SIZE], deleted > 0)
                )
        return deleted

    # --- in a thread ---

    def _read(self, name: str) -> Stored | None:
        with self._read_errors():
            return self._load(self._directory(), name)

    def _read_many(self, names: Iterable[str], max_missing: int) -> tuple[list[tuple[str, Stored]], int]:
        found: list[tuple[str, Stored]] = []
        tried = 0
        with self._read_errors():
            directory = self._directory()
            for name in names:
                tried += 1
                stored = self._load(directory, name)
                if stored is not None:
                    found.append((name, stored))
                elif tried - len(found) > max_missing:
                    break
        return found, tried

    def _names(self) -> set[str]:
        with self._read_errors():
            return {name for path, stems in self._stems() for stem in stems if (name := self._paths.name(path, stem))}

    def _read_all(self) -> "tuple[list[tuple[str, Stored]], list[tuple[str, InvalidPayloadError]]]":
        found: list[tuple[str, Stored]] = []
        damaged: list[tuple[str, InvalidPayloadError]] = []
        with self._read_errors():
            for path, stems in self._stems():
                known = {name for name, _ in found}
                for stem in stems:
                    name = stem
                    try:
                        name = self._paths.name(path, stem)
                        stored = None if name in known else self._file(path, stem).load()
                    except InvalidPayloadError as error:
                        damaged.append((name, error))
                        continue
                    if stored is not None:
                        found.append((name, stored))
        return sorted(found, key=lambda entry: (entry[1].created, natural(entry[0]))), damaged

    def _stems(self) -> Iterator[tuple[Path, list[str]]]:
        """Iterate over this directory and that of the framework, with the stems of the value files in them."""
        directory = self._directory()
        for path in filter(None, (directory, self._paths.framework_directory(directory))):
            yield path, value_stems(path)

    def _directory(self) -> Path:
        """Return the directory of this context, without what a crash has left there."""
        directory = self._paths.directory()
        self._journal.check(directory)
        if not self._swept:
            self._swept = True
            with suppress(OSError):  # whoever uses the directory is told what is wrong with it
                self._sweep(directory)
        return directory

    def _load(self, directory: Path, name: str) -> Stored | None:
        """Read the value of a name, or else what the framework has stored under it."""
        stored = self._file(directory, value_stem(name)).load()
        if stored is None and (file := self._framework_file(directory, name)) is not None:
            return file.load()
        return stored

    def _file(self, directory: Path, stem: str) -> ValueFile:
        return ValueFile(self._root, self._layout, directory, stem)

    def _framework_file(self, directory: Path, name: str) -> ValueFile | None:
        file = self._paths.framework_file(directory, name)
        return None if file is None else self._file(file.parent, file.stem)

    def _write(
        self, writes: Sequence[Write], replace: bool, flush: bool, *, stored_before: int = 0
    ) -> "list[_Effect | None]":
        effects: list[_Effect | None] = []
        with self._locked(lambda: stored_before > 0 or any(effects)) as (directory, descriptor):
            for write in writes:
                self._paths.label(directory, write.name)
                effects.append(self._store(directory, write, replace=replace, flush=flush))
            if flush:
                os.fsync(descriptor)
        return effects

    def _store(self, directory: Path, write: Write, *, replace: bool = True, flush: bool = True) -> "_Effect | None":
        file, plan, new = self._plan(directory, write, replace=replace)
        if plan is None:
            return None
        file.store(plan, flush=flush)
        return _Effect(new, plan.times)

    def _plan(self, directory: Path, write: Write, *, replace: bool = True) -> tuple[ValueFile, Plan | None, bool]:
        """Return the file of a write, its effect there, None if it has none, and whether the value is new."""
        file = self._file(directory, value_stem(write.name))
        old = read_file(file.path)
        replaced = file.path if old is not None else self._paths.framework_file(directory, write.name)
        if replaced is not None and not replace:
            return file, None, False
        return file, file.plan(write, old=old, replaced=replaced, now=self._clock.next), replaced is None

    def _claim(self, write: Write) -> bool:
        claimed = False
        with self._locked(lambda: claimed) as (directory, descriptor):
            stored = self._load(directory, write.name)
            if stored is not None and not stored.removed:
                return False
            self._paths.label(directory, write.name)
            self._store(directory, write)
            claimed = True
            os.fsync(descriptor)
        return True

    def _delete(self, names: Sequence[str], deleted_before: bool) -> int:
        deleted: set[str] = set()
        with self._locked(lambda: deleted_before or bool(deleted)) as (directory, descriptor):
            for name in names:
                own, framework = (
                    self._file(directory, value_stem(name)).path,
                    self._paths.framework_file(directory, name),
                )
                for path in (own, framework):
                    if path is not None and path.exists():
                        path.unlink()
                        deleted.add(name)
                        if path is framework:
                            sync_directory(path.parent)
            os.fsync(descriptor)
        return len(deleted)

    def _remove(self, name: str) -> bool:
        with self._write_errors(lambda: False):
            if not self._may_hold(self._directory(), name):
                return False
        removed = False
        with self._locked(lambda: removed) as (directory, descriptor):
            stored = self._load(directory, name)
            if stored is None or stored.removed:
                return stored is not None
            self._store(directory, self._tombstone(name, stored))
            removed = True
            os.fsync(descriptor)
        return True

    def _may_hold(self, directory: Path, name: str) -> bool:
        return directory.is_dir() or self._paths.framework_file(directory, name) is not None

    def _tombstone(self, name: str, stored: Stored) -> Write:
        return Write(name, codec.tombstone(stored.value), stored.when if self._layout.timed else None)

    def _sweep(self, directory: Path) -> None:
        if not directory.is_dir():
            return
        for parent in self._paths.parents(directory):
            remove_leftovers(find_leftovers(label_directory(self._root, parent), locked=False))
        directories = (directory, record_directory(self._root, directory), label_directory(self._root, directory))
        if not any(any(find_leftovers(path, locked=True)) for path in directories):
            return
        with directory_lock(directory, wait=False):  # whoever has it writes, and has not crashed
            for path in () if self._journal.concerns(directory) else directories:
                remove_leftovers(find_leftovers(path, locked=True))

    # --- in a thread, while the journal is locked ---

    def claim_directory(self, changes: Sequence["FolderChange"]) -> Path | None:
        """Make the directory for changes; None where there is nothing that they could remove."""
        directory = self._directory()
        if not any(change.write is not None or self._may_hold(directory, change.name) for change in changes):
            return None
        directory = self._paths.claim()
        for change in changes:
            if change.write is not None:
                self._paths.label(directory, change.name)
        return directory

    def plan(self, changes: Iterable["FolderChange"]) -> Iterator[FileChange]:
        """Iterate over the files that changes replace, while nobody else writes to this directory.

        `WriteRejectedError` for a claim of a value that is there and no tombstone.
        """
        directory = self._paths.directory()
        for change in changes:
            write = self._resolve(directory, change)
            if write is not None:
                file, plan, _ = self._plan(directory, write, replace=change.kind is not ChangeKind.INSERT)
                if plan is not None:
                    yield from file.changes(plan)

    def _resolve(self, directory: Path, change: "FolderChange") -> Write | None:
        """Return the write that a change amounts to; None for the removal of what is not there."""
        if change.write is not None and change.kind is not ChangeKind.CLAIM:
            return change.write
        stored = self._load(directory, change.name)
        if stored is None or stored.removed:
            return change.write
        if change.write is None:
            return self._tombstone(change.name, stored)
        raise WriteRejectedError(
            f"{self.describe(change.name)}: somebody else has claimed this entry since this unit of work did. "
            "Nothing of it was stored; do it again.",
            collection=self._layout.domain.collection,
            context=change.context,
        )

    # --- locks and errors ---

    @contextmanager
    def _locked(self, stored: Callable[[], bool]) -> Generator[tuple[Path, int]]:
        """Make the directory of this context and lock it; yields it with its descriptor.

        `stored` tells whether anything has been stored when an error is raised.
        """
        with self._write_errors(stored):
            self._directory()
            directory = self._paths.claim()
            with self._journal.directory_lock(directory) as descriptor:
                yield directory, descriptor

    @contextmanager
    def _read_errors(self) -> Generator[None]:
        try:
            yield
        except NotADirectoryError:
            problem = f"{self._description}: a part of its path is a file; move it away."
            raise StoreUnavailableError(problem, context=self._context, retryable=False) from None
        except OSError as error:
            problem = f"{self._description} cannot be read: {cause_of(error)}."
            retryable = not isinstance(error, PermissionError)
            raise StoreUnavailableError(problem, context=self._context, retryable=retryable) from None

    @contextmanager
    def _write_errors(self, stored: Callable[[], bool]) -> Generator[None]:
        try:
            yield
        except OSError as error:
            problem = f"{self._description} cannot be written: {cause_of(error)}."
            if stored():
                problem = f"{problem} A part may have been stored; read to see what was."
                raise WriteOutcomeUnknownError(problem, context=self._context) from None
            error_type = StoreUnavailableError if isinstance(error, TimeoutError) else WriteRejectedError
            raise error_type(f"{problem} Nothing was stored.", context=self._context) from None


class FolderChange(NamedTuple):
    """A change of a unit of work."""

    kind: ChangeKind
    context: Mapping[str, Any]
    name: str
    write: Write | None
    """The new value; None for `ChangeKind.REMOVE`."""


class _Effect(NamedTuple):
    """The effect of a write that has stored its value."""

    new: bool
    times: Times
