"""Keeping writers of a dump apart: between processes, between threads, and between the calls of an event loop."""

import asyncio
import errno
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = ("POLL_SECONDS", "LoopLock", "TurnLock", "WriterThread", "directory_lock")

POLL_SECONDS = 0.002
"""How often a writer looks whether a directory is free."""
_TIMEOUT_SECONDS = 5.0
"""How long a writer waits for a directory."""
_NO_WAIT_SECONDS = 1.0
"""How long a directory is not waited for again after a wait for it has timed out."""

T = TypeVar("T")

_locked_descriptors: set[int] = set()
_gave_up_at: dict[Path, float] = {}
"""The monotonic time at which the last wait for a directory timed out."""


@contextmanager
def directory_lock(directory: Path, *, wait: bool = True, seconds: float | None = None) -> Generator[int]:
    """Keep other writers out of a directory, in this process and others; yields a descriptor of the directory.

    The system releases the lock of a process that dies. `TimeoutError` when another writer keeps it for so many
    `seconds`, by default 5. For a second after that, or without `wait`, the error comes at once, so that calls that
    queue for one directory end together.
    """
    import fcntl  # not on Windows, where the rest of the package can be imported

    descriptor = os.open(directory, os.O_RDONLY)
    _locked_descriptors.add(descriptor)
    now = time.monotonic()
    wait = wait and now > _gave_up_at.get(directory, -math.inf) + _NO_WAIT_SECONDS
    limit = _TIMEOUT_SECONDS if seconds is None else seconds
    deadline = now + limit if wait else now
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    if wait:
                        _gave_up_at[directory] = time.monotonic()
                    problem = f"another process keeps {directory} locked; try again when it has finished"
                    raise TimeoutError(errno.ETIMEDOUT, problem) from None
                time.sleep(POLL_SECONDS)
        _gave_up_at.pop(directory, None)
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile may have the descriptor open as well
    finally:
        _locked_descriptors.discard(descriptor)
        os.close(descriptor)


def _close_inherited_locks() -> None:
    """Close, in a forked child, the descriptors through which it would keep its parent's directories locked."""
    while _locked_descriptors:
        os.close(_locked_descriptors.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_inherited_locks)


class WriterThread:
    """The one thread in which a process writes to a dump.

    Work runs in the order in which it was submitted, so a cancelled write cannot be applied after a later one.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._pid = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` after everything that was submitted before it."""
        if self._executor is None or self._pid != os.getpid():  # threads do not survive a fork
            self._executor, self._pid = ThreadPoolExecutor(1, "backtest-persist-dump"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class TurnLock:
    """A lock of one event loop, which its users get in the order in which they asked for it."""

    def __init__(self) -> None:
        self._turns: deque[asyncio.Future[None]] = deque()

    def ask(self) -> "asyncio.Future[None]":
        """Ask for the lock, without waiting for it; the future is done as soon as the caller has it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        self._give()
        return turn

    def release(self, turn: "asyncio.Future[None]") -> None:
        """Release the lock, or ask for it no longer."""
        self._turns.remove(turn)
        self._give()

    def _give(self) -> None:
        if self._turns and not self._turns[0].done():
            self._turns[0].set_result(None)

    async def __aenter__(self) -> None:
        turn = self.ask()
        try:
            await turn
        except BaseException:
            self.release(turn)
            raise

    async def __aexit__(self, *error: object) -> None:
        self.release(self._turns[0])


class LoopLock:
    """One `TurnLock` for each running event loop."""

    def __init__(self) -> None:
        self._locks: dict[asyncio.AbstractEventLoop, TurnLock] = {}

    def get(self) -> TurnLock:
        """Return the lock of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._locks:
            for closed in [known for known in list(self._locks) if known.is_closed()]:
                self._locks.pop(closed, None)
            self._locks[loop] = TurnLock()
        return self._locks[loop]
