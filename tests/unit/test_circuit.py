"""The circuit breaker alone, by a clock of the test's."""

import pytest

from backtest_persist.connections.circuit import CircuitBreaker, CircuitState


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A time after that of every failure before the test."""
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> CircuitBreaker:
    """A circuit that is closed."""
    return CircuitBreaker(clock)


def fail(circuit: CircuitBreaker, clock: Clock, *, at_once: bool = False) -> bool:
    """Make a call that fails a moment after it was admitted."""
    started = circuit.admit()
    assert started is not None
    clock.now += 0.001
    return circuit.fail(started, at_once=at_once)


def opened(circuit: CircuitBreaker, clock: Clock) -> None:
    """Open a circuit by a call without an answer."""
    assert fail(circuit, clock, at_once=True)
    assert circuit.state is CircuitState.OPEN


def test_a_closed_circuit_admits_everybody(circuit: CircuitBreaker, clock: Clock) -> None:
    """Each call gets the time at which it begins."""
    assert circuit.state is CircuitState.CLOSED
    assert [circuit.admit() for _ in range(3)] == [clock.now] * 3
    assert circuit.succeed() is False


def test_failures_in_a_row_open_it(circuit: CircuitBreaker, clock: Clock) -> None:
    """The one that opens it is told so, that it is logged once for an outage."""
    outcomes = [fail(circuit, clock) for _ in range(CircuitBreaker.FAILURES_UNTIL_OPEN)]
    assert outcomes == [False, False, True]
    assert circuit.state is CircuitState.OPEN
    assert circuit.admit() is None


def test_a_success_between_failures_keeps_it_closed(circuit: CircuitBreaker, clock: Clock) -> None:
    """Failures count in a row only."""
    for _ in range(4):
        fail(circuit, clock)
        fail(circuit, clock)
        assert circuit.succeed() is False
    assert circuit.state is CircuitState.CLOSED


def test_a_call_without_an_answer_opens_it_at_once(circuit: CircuitBreaker, clock: Clock) -> None:
    """Another one would lose a whole deadline."""
    assert fail(circuit, clock, at_once=True) is True
    assert circuit.state is CircuitState.OPEN


def test_failures_of_calls_that_overlap_count_as_one(circuit: CircuitBreaker, clock: Clock) -> None:
    """A hundred calls that meet one broken connection do not open it."""
    started = [circuit.admit() for _ in range(100)]
    clock.now += 0.1
    assert not any(circuit.fail(moment) for moment in started if moment is not None)
    assert circuit.state is CircuitState.CLOSED
    fail(circuit, clock)
    assert circuit.state is CircuitState.CLOSED
    fail(circuit, clock)
    assert circuit.state is CircuitState.OPEN


def test_one_call_probes_after_the_pause(circuit: CircuitBreaker, clock: Clock) -> None:
    """It is half-open then: the others go on without, until the probe has reported or another pause is over."""
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS - 0.01
    assert circuit.admit() is None
    clock.now += 0.02
    assert circuit.state is CircuitState.OPEN
    assert circuit.admit() == clock.now
    assert circuit.state is CircuitState.HALF_OPEN
    assert [circuit.admit() for _ in range(50)] == [None] * 50


def test_a_probe_that_succeeds_closes_it(circuit: CircuitBreaker, clock: Clock) -> None:
    """Everybody is admitted again, and the next outage begins with the first pause."""
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS
    assert circuit.admit() is not None
    assert circuit.succeed() is True
    assert circuit.state is CircuitState.CLOSED
    assert circuit.succeed() is False
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS
    assert circuit.admit() is not None


def test_the_pause_doubles_up_to_a_limit(circuit: CircuitBreaker, clock: Clock) -> None:
    """After each probe that fails nobody is admitted for twice as long; none of these says that it opened it."""
    opened(circuit, clock)
    pauses: list[float] = []
    for _ in range(6):
        failed = clock.now
        while circuit.admit() is None:
            clock.now += 0.125
        pauses.append(clock.now - failed)
        assert circuit.fail(clock.now) is False
        assert circuit.state is CircuitState.OPEN
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_probe_that_reports_nothing_is_followed_by_another_one(circuit: CircuitBreaker, clock: Clock) -> None:
    """Its caller may have been cancelled, or the server has answered with an error, which is no failure."""
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS
    assert circuit.admit() is not None
    clock.now += 0.9
    assert circuit.admit() is None
    assert circuit.state is CircuitState.HALF_OPEN
    clock.now += 0.1
    assert circuit.state is CircuitState.OPEN
    assert circuit.admit() is not None


def test_an_answer_that_is_an_error_is_no_failure(circuit: CircuitBreaker, clock: Clock) -> None:
    """It is not reported, so it neither opens the circuit nor forgives what has failed before."""
    fail(circuit, clock)
    fail(circuit, clock)
    assert circuit.admit() is not None
    assert circuit.state is CircuitState.CLOSED
    fail(circuit, clock)
    assert circuit.state is CircuitState.OPEN


def test_reset_closes_it(circuit: CircuitBreaker, clock: Clock) -> None:
    """The server is another one then; the pauses begin anew."""
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS
    fail(circuit, clock)
    circuit.reset()
    assert circuit.state is CircuitState.CLOSED
    assert circuit.admit() == clock.now
    opened(circuit, clock)
    clock.now += CircuitBreaker.FIRST_PAUSE_SECONDS
    assert circuit.admit() is not None


def test_who_has_waited_learns_that_it_has_opened_meanwhile(circuit: CircuitBreaker, clock: Clock) -> None:
    """Then it is not worth a try; a failure of before is no reason, nor one that leaves it closed."""
    began = clock.now
    clock.now += 1
    fail(circuit, clock)
    assert not circuit.has_opened_since(began)
    fail(circuit, clock, at_once=True)
    assert circuit.has_opened_since(began)
    assert not circuit.has_opened_since(clock.now)
    circuit.succeed()
    assert not circuit.has_opened_since(began)
