"""Owner: which process holds a lease, whether it is known to have ended, and the errors that name it."""

import math
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Self
from uuid import uuid4

from pydantic import PositiveInt

from backtest_persist.core.row import Context, Wire
from backtest_persist.errors import LeaseHeldError, LeaseLostError

__all__ = ("Owner", "held_error", "lost_error", "note_given_up")

_PROC = Path("/proc")
_SPARE_SECONDS = 5
"""How much longer than a lease lasts one who waits for its end should wait."""
_ENDED = ("Z", "X")
"""The states of a process that runs nothing any more: a zombie, whose parent has not asked for its status, or dead."""


class Owner(Wire):
    """A process that holds a lease."""

    host: str
    """The name of its host, for people."""
    pid_namespace: str | None
    """Where its pid counts: the boot of the host, and the pid namespace of the container; None if that is unknown."""
    pid: PositiveInt
    started: int | None
    """When it was started, in clock ticks since that boot, as its pid can be used again; None if that is unknown."""
    process: str = ""
    """A random word for the process, which another program that it becomes (`os.execv`) does not have."""
    token: str
    """A random word for one taking of a lease."""

    @classmethod
    def here(cls) -> Self:
        """Return this process as the owner of a new lease."""
        namespace = _pid_namespace()
        pid = os.getpid()
        status = _status(pid) if namespace else None
        started = status[1] if status else None
        return cls(
            host=socket.gethostname(),
            pid_namespace=namespace,
            pid=pid,
            started=started,
            process=_process.word,
            token=uuid4().hex,
        )

    @property
    def is_here(self) -> bool:
        """Whether it is this process."""
        return self.process == _process.word

    @property
    def is_visible(self) -> bool:
        """Whether `is_gone` can tell: not for a process of another host, nor for what this process was before."""
        return self._counts_here and (self.pid != os.getpid() or self.is_here) and _status(self.pid) is not None

    @property
    def _counts_here(self) -> bool:
        return self.pid_namespace == _pid_namespace() is not None and self.host == socket.gethostname()

    def is_gone(self) -> bool:
        """Whether it is known to have ended, or to have given up what it held; see `is_visible`."""
        if self.token in _given_up:
            return True
        if not self._counts_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is there, and belongs to another user
            pass
        status = _status(self.pid)
        if status is None:  # /proc hides the processes of other users (hidepid)
            return False
        state, started = status
        return state in _ENDED or (self.started is not None and started != self.started)


_given_up: set[str] = set()
"""The tokens of owners in this process that could not tell the server that they have given up."""


def note_given_up(token: str) -> None:
    """Let this process succeed an owner of its own whose lease could not be given up on the server."""
    _given_up.add(token)


class _Process:
    """The process that runs this; a forked child is another one."""

    def __init__(self) -> None:
        self.word = uuid4().hex

    def renew(self) -> None:
        self.word = uuid4().hex


_process = _Process()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_process.renew)


def held_error(
    context: Context, owner: Owner, since: datetime, *, seconds_left: float | None = None, collection: str | None = None
) -> LeaseHeldError:
    """Return the error of one who finds that the lease is held, by an owner since that time."""
    holder = f"{'this process, ' if owner.is_here else ''}pid {owner.pid} on host {owner.host}, since {_text(since)}"
    left = (
        "" if seconds_left is None else f" Unless it renews the lease, that runs out in {max(seconds_left, 0):.1f} s."
    )
    if owner.is_here:
        advice = "Leave that run first"
    elif owner.is_visible or seconds_left is None:
        advice = "End that process first, or wait longer for it"
    else:
        wait = math.ceil(max(seconds_left, 0)) + _SPARE_SECONDS
        advice = (
            "End that process first; if it has ended already, wait for that: pass "
            f"lease_wait={wait} to the run, or wait={wait} to its lease"
        )
    return LeaseHeldError(
        f"The run ({context.describe()}) is held by {holder}.{left} {advice}.",
        collection=collection,
        context=context.parts(),
        host=owner.host,
        pid=owner.pid,
        since=since,
    )


def lost_error(
    context: Context,
    problem: str | None = None,
    *,
    owner: Owner | None = None,
    since: datetime | None = None,
    collection: str | None = None,
) -> LeaseLostError:
    """Return the error of one who does not hold the lease, because of a `problem`, or as an `owner` has taken it."""
    if problem is None and owner is not None and since is not None:
        problem = (
            f"pid {owner.pid} on host {owner.host} took its lease at {_text(since)}, when this process had not renewed "
            "it for as long as it lasts. Start the run again to go on from what is stored"
        )
    return LeaseLostError(
        f"The run ({context.describe()}) cannot write: {problem or 'its lease is gone. Start the run again'}.",
        collection=collection,
        context=context.parts(),
        host=owner.host if owner else None,
        pid=owner.pid if owner else None,
        since=since if owner else None,
    )


def _text(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def _pid_namespace() -> str | None:
    """Return in what a pid of this process counts; None where that, or /proc, does not tell (not on Linux)."""
    try:
        if os.readlink(_PROC / "self") != str(os.getpid()):  # /proc of another namespace, as by `unshare --pid`
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat(_PROC / "self/ns/pid").st_ino
    except OSError:
        return None
    return f"{boot}/{namespace}" if boot else None


def _status(pid: int) -> tuple[str, int] | None:
    """Return the state of a process and when it was started, as in /proc/PID/stat; None if that cannot be read."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name of the program, in brackets, can hold anything
    return fields[0], int(fields[19])
