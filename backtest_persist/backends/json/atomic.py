"""Atomic files: readers see the old content or the new one, and a crash leaves at most a temporary file."""

import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

__all__ = (
    "TEMPORARY",
    "FileChange",
    "cause_of",
    "create_file",
    "find_leftovers",
    "make_directory",
    "read_file",
    "remove_leftovers",
    "replace_file",
    "sync_directory",
    "sync_file",
    "write_temporary",
)

TEMPORARY = ".tmp-"
"""The prefix of temporary files, here and in the TypeScript framework."""

_FRAMEWORK_LEFTOVER_SECONDS = 120
"""The age at which the framework removes its own temporary files."""

_serial_numbers = count()


class FileChange(NamedTuple):
    """The new content of a file."""

    path: Path
    text: bytes
    mtime_ns: int | None = None
    """The time of its last change, in ns since the epoch; None for now."""


def read_file(file: str | Path) -> bytes | None:
    """Return the content of a file, or None when it does not exist."""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        return None


def replace_file(file: Path, content: bytes, *, mtime_ns: int | None = None, flush: bool = True) -> None:
    """Create or replace a file in one step; `flush` puts its content on the disk first.

    The new name is on the disk only after `sync_directory`.
    """
    temporary = write_temporary(file, content, mtime_ns=mtime_ns, flush=flush)
    try:
        os.rename(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_temporary(file: Path, content: bytes, *, mtime_ns: int | None = None, flush: bool = True) -> Path:
    """Write what a file is to contain beside it; renamed to the file, it replaces that in one step."""
    temporary = _temporary_file(file)
    try:
        _write(temporary, content, mtime_ns, flush)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def create_file(file: Path, content: bytes) -> None:
    """Create a file in one step; an existing one is left as it is."""
    temporary = _temporary_file(file)
    try:
        _write(temporary, content, None, flush=True)
        with suppress(FileExistsError):
            os.link(temporary, file)
        os.unlink(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directory(directory: Path, *, flush: bool = True) -> None:
    """Make a directory and its missing parents; with `flush` they survive a crash of the machine."""
    missing: list[Path] = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        if flush:
            sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on the disk."""
    sync_file(directory)


def sync_file(file: Path) -> None:
    """Put the content of a file on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_leftovers(directory: Path, *, locked: bool) -> Iterator[Path]:
    """Iterate over the temporary files whose writers are gone.

    While the caller has the directory `locked`, every file of this package is one; any other only when it is old.
    """
    if not directory.is_dir():
        return
    oldest = time.time() - _FRAMEWORK_LEFTOVER_SECONDS
    for file in directory.iterdir():
        if file.name.startswith(TEMPORARY):
            abandoned = locked and re.fullmatch(rf"{re.escape(TEMPORARY)}\d+-\d+", file.name)
            with suppress(FileNotFoundError):  # its writer has just renamed it
                if abandoned or file.stat().st_mtime < oldest:
                    yield file


def remove_leftovers(files: Iterable[Path]) -> None:
    """Remove temporary files, except those that this user may not remove."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def cause_of(error: OSError) -> str:
    """Return the message of the system, the file it is about, and what to do."""
    problem = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}"
    return f"{problem}; give this user access to it" if isinstance(error, PermissionError) else problem


def _temporary_file(file: Path) -> Path:
    return file.with_name(f"{TEMPORARY}{os.getpid()}-{next(_serial_numbers)}")


def _write(file: Path, content: bytes, mtime_ns: int | None, flush: bool) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        if mtime_ns is not None:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
