"""Histories of concurrent clients, and a check whether one register for each key explains them.

Run as a program, this module is one of the processes whose clients write and read at random; it records each call as a
line of JSON. Times are those of `time.monotonic`, which all processes of a machine share.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, Literal

from backtest_persist import BacktestPersistError, Container, Registry, StoreUnavailableError, WriteRejectedError
from backtest_persist.testing.subjects import subject_named

__all__ = ("Event", "read_events", "violations")

SUBJECTS = tuple(map(subject_named, ("signal", "state", "storage")))
KEYS = 3
"""Contexts of each domain."""
CLIENTS = 6
"""Clients of one process."""


@dataclass(frozen=True)
class Event:
    """One call; no two writes of a key have the same value."""

    client: str
    kind: Literal["write", "read"]
    key: str
    value: str | None
    """The value that was written or read; None if a read found nothing."""
    began: float
    ended: float
    outcome: Literal["ok", "refused", "unknown"] = "ok"
    """Acknowledged or answered; certainly not applied; or neither is known, as after a cancellation."""


def read_events(files: Iterable[Path]) -> list[Event]:
    """Return the events that processes have written."""
    return [Event(**json.loads(line)) for file in files for line in file.read_text().splitlines()]


def violations(events: Sequence[Event]) -> list[str]:
    """Return the contradictions in a history, key by key; none if it is right."""
    keys = sorted({event.key for event in events})
    return [f"{key}: {problem}" for key in keys for problem in _check([event for event in events if event.key == key])]


def _check(events: Sequence[Event]) -> list[str]:
    problems: list[str] = []
    writes = {event.value: event for event in events if event.kind == "write"}
    reads = [event for event in events if event.kind == "read" and event.outcome == "ok"]
    writes[None] = Event("", "write", "", None, -inf, -inf)
    for read in reads:
        write = writes.get(read.value)
        if write is None or write.outcome == "refused" or read.ended < write.began:
            problems.append(f"{read.value} was read, but not written: {read}")
    if problems:
        return problems

    # A value is certainly stored from the first moment that proves it (its write returned, or a read found it) to the
    # last one (the beginning of its last read). In a register no two values can each be stored before the other.
    seen: dict[str | None, list[Event]] = {}
    for read in reads:
        seen.setdefault(read.value, []).append(read)
    lives: list[tuple[float, float, str | None]] = []
    for value, write in writes.items():
        own = seen.get(value, [])
        if write.outcome == "ok" or own:
            there = min([write.ended if write.outcome == "ok" else inf, *(read.ended for read in own)])
            lives.append((there, max([write.began, *(read.began for read in own)]), value))
    lives.sort(key=lambda life: life[0])
    for index, (there, still, value) in enumerate(lives):
        for there_too, still_too, other in lives[index + 1 :]:
            if there_too >= still:
                break
            if there < still_too:
                problems.append(f"{value} and {other} were each stored before the other, {still - there_too:.3f} s")

    # A client's write that was cancelled or failed never comes after its next acknowledged one.
    for value, write in writes.items():
        later = [
            other.ended
            for other in writes.values()
            if other.client == write.client and other.began > write.began and other.outcome == "ok"
        ]
        late = [read for read in seen.get(value, []) if later and read.began > min(later)]
        if write.outcome == "unknown" and late:
            problems.append(f"{value} came after a later write of its client: {late[0]}")
    return problems


# --- the process of some clients ---


async def _client(persist: Registry, name: str, until: float, log: Any, choice: random.Random) -> None:
    for number in count():
        if time.monotonic() > until:
            return
        subject = choice.choice(SUBJECTS)
        index = choice.randrange(KEYS)
        parts, key = subject.numbered(index), f"{subject}-{index}"
        if choice.random() < 0.5:
            value = f"{name}-{number}"
            call: Any = subject.write(persist, parts, {"value": value})
        else:
            value = None
            call = subject.read(persist, parts)
        kind: Literal["write", "read"] = "write" if value else "read"
        began = time.monotonic()
        task = asyncio.create_task(call)
        if choice.random() < 0.1:
            await asyncio.wait([task], timeout=choice.random() * 0.003)
            task.cancel()
        outcome: Literal["ok", "refused", "unknown"] = "ok"
        try:
            found = await task
            value = value if kind == "write" else found and found["value"]
        except asyncio.CancelledError:
            outcome = "unknown"
        except (StoreUnavailableError, WriteRejectedError):
            outcome = "refused"
        except BacktestPersistError:
            outcome = "unknown"
        event = Event(name, kind, key, value, began, time.monotonic(), outcome)
        log.write(json.dumps(asdict(event)) + "\n")


async def _main(file: str, name: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    async with Container() as container:
        persist = Registry(container)
        with Path(file).open("w") as log:  # noqa: ASYNC230  # lines in a buffer
            clients = [
                _client(persist, f"{name}.{number}", until, log, random.Random(f"{name}.{number}"))
                for number in range(CLIENTS)
            ]
            await asyncio.gather(*clients)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
