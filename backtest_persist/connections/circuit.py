"""The circuit breaker: whether a server that has failed is asked again."""

import time
from collections.abc import Callable
from enum import Enum

__all__ = ("CircuitBreaker", "CircuitState")


class CircuitState(Enum):
    """Who may ask the server."""

    CLOSED = "closed"
    """Everybody."""
    OPEN = "open"
    """Nobody, until the pause is over."""
    HALF_OPEN = "half-open"
    """One caller, who probes; the others go on without."""


class CircuitBreaker:
    """Opens after failures in a row, and lets one caller probe after each pause, which doubles up to a limit.

    Failures of calls that overlap count as one. An error that is an answer of the server is no failure: do not report
    it. A probe that reports nothing, as its caller was cancelled, is followed by another one after the next pause.
    """

    FAILURES_UNTIL_OPEN = 3
    FIRST_PAUSE_SECONDS = 0.5
    LONGEST_PAUSE_SECONDS = 4.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed_at = 0.0
        self.reset()

    def reset(self) -> None:
        """Close the circuit, as the server is another one now."""
        self._failures = 0
        self._pause = self.FIRST_PAUSE_SECONDS
        self._next_probe = 0.0
        self._probing = False

    @property
    def state(self) -> CircuitState:
        """Who may ask the server."""
        if self._failures < self.FAILURES_UNTIL_OPEN:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self._probing and self._clock() < self._next_probe else CircuitState.OPEN

    def admit(self) -> float | None:
        """Return the time at which a call begins, for `fail`; None if it must not ask the server."""
        now = self._clock()
        if self._failures >= self.FAILURES_UNTIL_OPEN:
            if now < self._next_probe:
                return None
            self._next_probe = now + self._pause
            self._probing = True
        return now

    def fail(self, started: float, *, at_once: bool = False) -> bool:
        """Report that a call has failed that was admitted at `started`; whether that has opened a closed circuit.

        A single failure opens it `at_once` if another call would lose as much time again.
        """
        if started < self._failed_at:
            return False
        was_closed = self._failures < self.FAILURES_UNTIL_OPEN
        self._failed_at = self._clock()
        self._failures = max(self._failures, self.FAILURES_UNTIL_OPEN) if at_once else self._failures + 1
        self._probing = False
        if self._failures < self.FAILURES_UNTIL_OPEN:
            return False
        self._next_probe = self._failed_at + self._pause
        self._pause = min(self._pause * 2, self.LONGEST_PAUSE_SECONDS)
        return was_closed

    def succeed(self) -> bool:
        """Report that a call has succeeded; whether that has closed an open circuit."""
        was_open = self._failures >= self.FAILURES_UNTIL_OPEN
        if self._failures:
            self.reset()
        return was_open

    def has_opened_since(self, moment: float) -> bool:
        """Whether the circuit is not closed, by a failure after that time."""
        return self._failures >= self.FAILURES_UNTIL_OPEN and self._failed_at > moment
