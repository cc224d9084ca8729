"""The journal of a dump: the files of a unit of work, written down before they are replaced, so that all are or none.

While a process stores a unit, it keeps all other units out. It *announces* the directories that it is going to change;
other writers leave them alone from then on. It *records* the new content of the files; from the moment in which that is
on the disk the unit is stored, whatever happens to the process. It *applies* it: the files are replaced, and the
journal is removed.

Whoever comes upon the journal of a process that is gone applies a unit that was recorded, and discards any other.
"""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, TypeAdapter

from backtest_persist.backends.json import codec
from backtest_persist.backends.json.atomic import (
    FileChange,
    cause_of,
    find_leftovers,
    make_directory,
    read_file,
    remove_leftovers,
    replace_file,
    sync_directory,
    sync_file,
    write_temporary,
)
from backtest_persist.backends.json.locks import directory_lock
from backtest_persist.backends.json.sidecar import HIDDEN
from backtest_persist.errors import StoreUnavailableError, WriteOutcomeUnknownError

__all__ = ("Journal",)

_FORMAT = 1
_WAIT_SECONDS = 30.0
"""How long the journal is waited for: units are large, and several processes may store some."""
_BODY = TypeAdapter(list[tuple[str, str, int | None]])


class _Header(BaseModel):
    """The first line of the journal; a JSON array of the new files follows once they are recorded."""

    format: int
    directories: list[str] = []
    """Those that the unit changes, relative to the dump."""
    digest: str = ""
    """That of the rest of the journal; empty while the unit is only announced."""


class Journal:
    """The journal of one dump; it does I/O, so it is called in threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / HIDDEN / "journal"
        self._file = self._directory / "unit.json"
        self._path = str(self._file)
        self._used = False

    # --- for single values ---

    def concerns(self, directory: Path) -> bool:
        """Whether a unit that has not been applied yet may change a directory."""
        line = self._first_line()
        if line is None:
            return False
        header = _parse_header(line)
        return header is None or header.format != _FORMAT or self._relative(directory) in header.directories

    def check(self, directory: Path) -> None:
        """Settle the unit of a process that is gone if it concerns a directory.

        Only the first use of a dump waits while another process is at work on a unit: it may have started together with
        this one, and be applying what a process before both has left.
        """
        if self.concerns(directory):
            try:
                self.settle(wait=not self._used)
            except TimeoutError:
                if not self._used:
                    raise
        self._used = True

    @contextmanager
    def directory_lock(self, directory: Path) -> Generator[int]:
        """Keep other writers out of a directory, as `locks.directory_lock` does, while no unit concerns it."""
        while True:
            with directory_lock(directory) as descriptor:
                if not self.concerns(directory):
                    yield descriptor
                    return
            self.settle()  # without the lock of the directory, for which the unit may be waiting

    def settle(self, *, wait: bool = True) -> None:
        """Apply or discard the unit of a process that is gone; `TimeoutError` while another one is at work on it."""
        if self._first_line() is not None:
            with directory_lock(self._directory, wait=wait, seconds=_WAIT_SECONDS):
                self._settle()

    # --- for units ---

    @contextmanager
    def lock(self) -> Generator[None]:
        """Keep all units of other writers out, once what a process has left is settled."""
        make_directory(self._directory)
        with directory_lock(self._directory, seconds=_WAIT_SECONDS):
            remove_leftovers(find_leftovers(self._directory, locked=True))
            self._settle()
            yield

    def store(self, directories: Iterable[Path], plan: Callable[[], Sequence[FileChange]]) -> None:
        """Replace files as one, while the journal is locked.

        `plan` is called once no other writer changes `directories` any more, and returns the changes there.

        After any error nothing is stored, unless it is a `WriteOutcomeUnknownError`.
        """
        directories = sorted(directories)
        temporary: list[Path] = []
        try:
            replace_file(self._file, self._header(directories), flush=False)
            for directory in directories:
                with directory_lock(directory):
                    pass  # who had it before the announcement has finished
            changes = plan()
            for change in changes:  # all that takes space, and may be refused, before the unit is stored
                make_directory(change.path.parent)
                temporary.append(write_temporary(change.path, change.text, mtime_ns=change.mtime_ns, flush=False))
            if changes:
                self._record(directories, changes)
        except BaseException:
            self._discard(temporary)
            raise
        if not changes:
            return self._file.unlink()
        try:
            for file, change in zip(temporary, changes, strict=True):
                try:
                    os.rename(file, change.path)
                except FileNotFoundError:  # another program has removed it
                    _replace(change)
            self._finish(changes)
        except OSError as error:
            self._leave(error)

    # --- the file ---

    def _first_line(self) -> bytes | None:
        try:
            with open(self._path, "rb") as opened:
                return opened.readline()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            if os.access(self._root, os.X_OK):
                raise
            return None  # the rest of the dump is as inaccessible, which is what the caller is told

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _header(self, directories: Sequence[Path], body: bytes = b"") -> bytes:
        header = _Header(
            format=_FORMAT,
            directories=[self._relative(directory) for directory in directories],
            digest=_digest(body) if body else "",
        )
        return codec.dumps(header.model_dump()) + b"\n"

    def _record(self, directories: Sequence[Path], changes: Sequence[FileChange]) -> None:
        body = codec.dumps([(self._relative(path), text.decode(), mtime_ns) for path, text, mtime_ns in changes])
        replace_file(self._file, self._header(directories, body) + body)
        sync_directory(self._directory)

    def _recorded(self, content: bytes) -> list[FileChange]:
        """Return the changes of a unit; none if it was not recorded, or not wholly."""
        line, separator, body = content.partition(b"\n")
        header = _parse_header(line + separator)
        if header is not None and header.format != _FORMAT:
            problem = f"Another release of this package has left a unit of work in {self._file}"
            raise StoreUnavailableError(f"{problem}; open the dump with that release.", retryable=False)
        if header is None or header.digest != _digest(body):
            return []
        entries = _BODY.validate_json(body)
        changes = [FileChange(self._root / path, text.encode(), mtime_ns) for path, text, mtime_ns in entries]
        outside = [path for path, _, _ in changes if ".." in path.parts or not path.is_relative_to(self._root)]
        return [] if outside else changes

    def _settle(self) -> None:
        content = read_file(self._file)
        if content is None:
            return
        try:
            changes = self._recorded(content)
            for directory in {change.path.parent for change in changes}:
                remove_leftovers(find_leftovers(directory, locked=True))
            for change in changes:
                _replace(change)
            self._finish(changes)
        except OSError as error:
            problem = f"{error.strerror}, while a unit of work that another process has left was applied"
            raise OSError(error.errno, problem, error.filename) from None

    def _finish(self, changes: Sequence[FileChange]) -> None:
        """Put files that were replaced on the disk, and forget their unit."""
        for change in changes:
            sync_file(change.path)
        for directory in {change.path.parent for change in changes}:
            sync_directory(directory)
        self._forget_changes()
        self._file.unlink()

    def _forget_changes(self) -> None:
        """Leave the announcement of the unit that is recorded: a crash of the machine brings that back at most.

        Others change the directories as soon as the journal is removed, which may not be on the disk yet.
        """
        line = self._first_line() or b""
        try:
            os.truncate(self._path, len(line))  # which takes no space
            sync_file(self._file)
        except PermissionError:  # it belongs to another user
            replace_file(self._file, line)
            sync_directory(self._directory)

    def _discard(self, temporary: Sequence[Path]) -> None:
        """Forget a unit that failed before it was recorded, or while it was."""
        for file in temporary:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        try:
            with suppress(FileNotFoundError):
                self._forget_changes()
            self._file.unlink(missing_ok=True)
        except OSError as error:
            content = read_file(self._file)
            if content is not None and self._recorded(content):
                self._leave(error)

    def _leave(self, error: OSError) -> NoReturn:
        raise WriteOutcomeUnknownError(
            f"A unit of work was written to {self._file}, but not applied: {cause_of(error)}. The next use of the dump "
            "applies it."
        ) from None


def _parse_header(line: bytes) -> _Header | None:
    try:
        return _Header.model_validate_json(line, strict=True) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def _replace(change: FileChange) -> None:
    make_directory(change.path.parent)
    replace_file(change.path, change.text, mtime_ns=change.mtime_ns, flush=False)
