"""JsonCommitter: units of work stored in the files of a dump, all or none."""

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import Context as ContextVariables
from functools import partial
from typing import Any, cast

from backtest_persist.backends.json.atomic import FileChange, cause_of
from backtest_persist.backends.json.folder import DumpFiles, Folder, FolderChange
from backtest_persist.backends.json.lease import JsonLease
from backtest_persist.backends.json.locks import TurnLock
from backtest_persist.backends.json.store import JsonStore
from backtest_persist.connections import joined
from backtest_persist.core.change import Change, ChangeKind, Part
from backtest_persist.errors import SettingsError, StoreUnavailableError, WriteRejectedError

__all__ = ("JsonCommitter",)

Changes = dict[Folder, list[tuple[JsonStore[Any, Any], Change]]]


class JsonCommitter:
    """Stores units of work in the files of a dump, by its journal; implements `core.unit_of_work.Committer`.

    Units of all processes are stored one after another. Between its first and its last file a unit keeps single writes
    to its directories waiting; readers see each file as it was or as it is. With a lease nothing is stored once that
    is lost.
    """

    def __init__(self, dump: DumpFiles, lease: JsonLease | None = None) -> None:
        self._dump = dump
        self._lease = lease
        self._commits: set[asyncio.Task[None]] = set()

    async def wait_for_init(self) -> None:
        """Prepare nothing: the journal is made by the first commit."""

    async def commit(self, parts: Sequence[Part]) -> None:
        """Store the changes of all parts, or none of them; after the writes of this event loop that were called before.

        A cancelled caller cuts nothing: the commit goes on. Raises `LeaseLostError`, `WriteRejectedError` when the file
        system refuses or an entry was claimed by others, `StoreUnavailableError` when another process does not release
        the journal or a directory, and `WriteOutcomeUnknownError` when the unit was recorded, but not applied yet.
        """
        changes = self._by_folder(parts)
        if not changes:
            return
        # asked for at once, so that no later call comes first, and two commits do not wait for each other
        turns = [(lock, lock.ask()) for lock in (folder.write_lock.get() for folder in changes)]
        commit = asyncio.create_task(self._commit(changes, turns), context=ContextVariables())
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        await joined(commit)

    async def close(self) -> None:
        """Wait for the commits in progress."""
        while self._commits:
            await asyncio.wait(self._commits)

    def _by_folder(self, parts: Sequence[Part]) -> Changes:
        changes: Changes = {}
        for part in parts:
            store = cast("JsonStore[Any, Any]", part.store)
            if not isinstance(part.store, JsonStore) or store.dump.root != self._dump.root:
                raise SettingsError(f"A unit of work in {self._dump.root} takes adapters of that dump only.")
            for change in part.changes:
                changes.setdefault(store.folder(change.context.parts()), []).append((store, change))
        return changes

    async def _commit(self, changes: Changes, turns: "Sequence[tuple[TurnLock, asyncio.Future[None]]]") -> None:
        try:
            for _, turn in turns:
                await turn
            await self._dump.writer.run(partial(self._store, changes))
        finally:
            for lock, turn in turns:
                lock.release(turn)

    # --- in a thread ---

    def _store(self, changes: Changes) -> None:
        encoded = {folder: [_encoded(*change) for change in listed] for folder, listed in changes.items()}
        with self._write_errors(), self._dump.journal.lock():
            if self._lease is not None:
                self._lease.fence()
            claimed = {folder: folder.claim_directory(listed) for folder, listed in encoded.items()}
            directories = {folder: directory for folder, directory in claimed.items() if directory is not None}

            def plan() -> list[FileChange]:
                return [file for folder in directories for file in folder.plan(encoded[folder])]

            if directories:
                self._dump.journal.store(directories.values(), plan)

    @contextmanager
    def _write_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            problem = f"A unit of work in {self._dump.root} cannot be stored: {cause_of(error)}. Nothing was stored."
            error_type = StoreUnavailableError if isinstance(error, TimeoutError) else WriteRejectedError
            raise error_type(problem) from None


def _encoded(store: JsonStore[Any, Any], change: Change) -> FolderChange:
    parts = change.context.parts()
    write = None if change.kind is ChangeKind.REMOVE else store.to_write(parts, change.fields)
    return FolderChange(change.kind, parts, store.name(parts), write)
