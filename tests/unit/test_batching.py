"""Batcher: who travels with whom, in which order, and what happens when someone leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from backtest_persist import StoreUnavailableError
from backtest_persist.core.batching import Batcher, Call


def late(item: Any) -> Exception:
    return StoreUnavailableError(f"{item} is late")


class Airport:
    """Records flights; each lands when the test lets it."""

    def __init__(self, *, limit: int = 1, size: int = 100, deadline: float = 60.0, alone: Any = nullcontext) -> None:
        self.left: list[list[Any]] = []
        self.seconds: list[float] = []
        self.gates: list[asyncio.Event] = []
        self.flights: Batcher[Any, Any] = Batcher(
            self.fly, max_in_flight=limit, max_size=size, timeout=deadline, timed_out=late, limit=alone
        )

    async def fly(self, seats: Sequence[Call[Any, Any]], seconds: float) -> None:
        self.left.append([seat.item for seat in seats])
        self.seconds.append(seconds)
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        for seat in seats:
            if isinstance(seat.item, Exception):
                seat.fail(seat.item)
            else:
                seat.resolve(seat.item)

    async def close(self) -> None:
        """Let everything land."""
        while self.flights._in_flight:
            for gate in self.gates:
                gate.set()
            await asyncio.sleep(0)

    async def turn(self) -> None:
        """Let everything that can happen now happen."""
        for _ in range(10):
            await asyncio.sleep(0)


Opener = Callable[..., Airport]


@pytest.fixture
async def open_airport() -> AsyncIterator[Opener]:
    """Opens airports, and at the end of the test lets everything land."""
    airports: list[Airport] = []

    def open_airport(**options: Any) -> Airport:
        airports.append(Airport(**options))
        return airports[-1]

    yield open_airport
    for airport in airports:
        await airport.close()


async def board(airport: Airport, items: str) -> list[asyncio.Future[Any]]:
    """Send one item with a flight of its own, and then the others, which have to wait for it."""
    first = airport.flights.submit(items[0])
    await airport.turn()
    return [first, *(airport.flights.submit(item) for item in items[1:])]


async def test_a_lone_item_leaves_at_once_and_alone(open_airport: Opener) -> None:
    """With nothing in the air an item is sent in the same turn of the loop, without waiting for others."""
    airport = open_airport()
    first = airport.flights.submit("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert airport.left == [["a"]]
    airport.gates[0].set()
    assert await first == "a"


async def test_a_lone_question_takes_no_task(open_airport: Opener) -> None:
    """It is sent before anything else has a turn, and cut off when its caller is cancelled; who comes next waits."""
    airport = open_airport()
    asking = asyncio.create_task(airport.flights.ask("a"))
    await asyncio.sleep(0)
    assert airport.left == [["a"]]
    tasks = asyncio.all_tasks()
    assert tasks == {asking, asyncio.current_task()}
    second = airport.flights.submit("b")
    await airport.turn()
    assert airport.left == [["a"]]
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await airport.turn()
    airport.gates[1].set()
    assert await second == "b"
    await airport.flights.drain()


async def test_a_question_answers_or_fails_as_its_flight_does(open_airport: Opener) -> None:
    """Alone or in company, an answer is returned and an error raised."""
    airport = open_airport(limit=2)
    for company in (0, 3):
        items: list[Any] = ["a", LookupError("mine"), *range(company)]
        asking = [asyncio.create_task(airport.flights.ask(item)) for item in items]
        while not all(task.done() for task in asking):
            await airport.turn()
            for gate in airport.gates:
                gate.set()
        assert asking[0].result() == "a"
        assert str(asking[1].exception()) == "mine"


async def test_after_a_crowd_nobody_flies_alone(open_airport: Opener) -> None:
    """Callers whom one landing woke ask again in the same turn, and leave together."""
    airport = open_airport()
    first = await board(airport, "abc")
    airport.gates[0].set()
    await airport.turn()
    airport.gates[1].set()
    await asyncio.gather(*first)
    asking = [asyncio.create_task(airport.flights.ask(item)) for item in "de"]
    await airport.turn()
    assert airport.left == [["a"], ["b", "c"], ["d", "e"]]
    airport.gates[2].set()
    assert await asyncio.gather(*asking) == ["d", "e"]


async def test_who_met_company_in_the_air_waits_for_it_the_next_time(open_airport: Opener) -> None:
    """Two callers who ask in the same turn, again and again, share a flight from the second time on; one does not."""
    airport = open_airport(limit=2)
    for items in ("ab", "cd", "e", "f"):
        asking = [asyncio.create_task(airport.flights.ask(item)) for item in items]
        while not all(task.done() for task in asking):
            await airport.turn()
            for gate in airport.gates:
                gate.set()
    assert airport.left == [["a"], ["b"], ["c", "d"], ["e"], ["f"]]
    assert not airport.flights._contended


async def test_items_of_one_turn_leave_together(open_airport: Opener) -> None:
    """Those who arrive before the loop has gone round share a flight."""
    airport = open_airport()
    answers = [airport.flights.submit(item) for item in "abc"]
    await airport.turn()
    assert airport.left == [["a", "b", "c"]]
    airport.gates[0].set()
    assert await asyncio.gather(*answers) == ["a", "b", "c"]


async def test_items_that_wait_leave_together_in_order(open_airport: Opener) -> None:
    """What arrives during a flight shares the next one, in the order of arrival."""
    airport = open_airport()
    answers = await board(airport, "abcd")
    airport.gates[0].set()
    await airport.turn()
    assert airport.left == [["a"], ["b", "c", "d"]]
    airport.gates[1].set()
    assert await asyncio.gather(*answers) == ["a", "b", "c", "d"]


async def test_an_item_never_joins_a_flight_that_has_left(open_airport: Opener) -> None:
    """A second flight leaves beside the first one where that is allowed, and the item travels with it."""
    airport = open_airport(limit=2)
    airport.flights.submit("a")
    await airport.turn()
    airport.flights.submit("b")
    airport.flights.submit("c")
    await airport.turn()
    airport.flights.submit("d")
    await airport.turn()
    assert airport.left == [["a"], ["b", "c"]]
    airport.gates[1].set()
    await airport.turn()
    assert airport.left == [["a"], ["b", "c"], ["d"]]


async def test_a_flight_has_a_limited_number_of_seats(open_airport: Opener) -> None:
    """The rest leaves with the following flights."""
    airport = open_airport(size=2)
    await board(airport, "abcde")
    for gate in range(4):
        await airport.turn()
        if gate < len(airport.gates):
            airport.gates[gate].set()
    assert airport.left == [["a"], ["b", "c"], ["d", "e"]]


async def test_a_caller_that_is_cancelled_leaves_the_others(open_airport: Opener) -> None:
    """Before the departure its item stays behind; after it the flight goes on, for the others and for itself."""
    airport = open_airport()
    first, second, third = await board(airport, "abc")
    second.cancel()
    await airport.turn()
    first.cancel()
    airport.gates[0].set()
    await airport.turn()
    assert airport.left == [["a"], ["c"]]
    airport.gates[1].set()
    assert await third == "c"


async def test_an_error_of_one_is_not_that_of_the_others(open_airport: Opener) -> None:
    """Each caller gets its own answer or its own error; when a flight as a whole fails, all its callers are told."""
    airport = open_airport()
    await board(airport, "a")
    good, bad = airport.flights.submit("b"), airport.flights.submit(LookupError("mine"))
    await airport.turn()
    airport.gates[0].set()
    await airport.turn()
    airport.gates[1].set()
    assert await good == "b"
    with pytest.raises(LookupError, match="mine"):
        await bad

    async def fail(seats: Sequence[Call[Any, Any]], seconds: float) -> None:
        raise ConnectionError("all")

    flights: Batcher[Any, Any] = Batcher(fail, max_in_flight=1, max_size=9, timeout=60.0, timed_out=late)
    answers = [flights.submit(item) for item in "abc"]
    assert [str(error) for error in await asyncio.gather(*answers, return_exceptions=True)] == ["all"] * 3
    await flights.drain()
    assert not flights._in_flight


async def test_an_item_that_waited_for_the_whole_deadline_is_not_sent(open_airport: Opener) -> None:
    """The time in the queue counts: what is over is refused, what is left is the time of the flight."""
    airport = open_airport(deadline=0.05)
    first, second = await board(airport, "ab")
    await asyncio.sleep(0.06)  # the deadline itself is what passes here
    third = airport.flights.submit("c")
    airport.gates[0].set()
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError, match="nothing was sent"):
            await second
    assert await first == "a"
    await airport.turn()
    assert airport.left == [["a"], ["c"]]
    assert 0 < airport.seconds[1] <= 0.05
    airport.gates[1].set()
    assert await third == "c"


async def test_who_is_late_is_told_while_the_flight_goes_on(open_airport: Opener) -> None:
    """Those in the air and those that wait get an error in time; the flight keeps its place until it lands."""
    airport = open_airport(deadline=0.05)
    answers = await board(airport, "ab")
    async with asyncio.timeout(5):
        for answer, item in zip(answers, "ab", strict=True):
            with pytest.raises(StoreUnavailableError, match=f"{item} is late"):
                await answer
    third = airport.flights.submit("c")
    await airport.turn()
    assert airport.left == [["a"]]
    airport.gates[0].set()
    await airport.turn()
    assert airport.left == [["a"], ["c"]]
    airport.gates[1].set()
    assert await third == "c"


async def test_a_busy_loop_makes_nobody_late(open_airport: Opener) -> None:
    """An answer that came while the loop was busy with something else counts."""
    airport = open_airport(deadline=0.05)
    (answer,) = await board(airport, "a")
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, airport.gates[0].set)
    time.sleep(0.2)  # noqa: ASYNC251  # the strategy computes something
    assert await answer == "a"


async def test_a_caller_without_company_flies_only_if_it_must(open_airport: Opener) -> None:
    """In its own task it has the limit it was given; without one it boards, and its cancellation cuts nothing off."""

    def impatient(seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds / 10)

    airport = open_airport(deadline=0.1, alone=impatient)
    with pytest.raises(StoreUnavailableError, match="a is late"):
        await airport.flights.ask("a")
    assert not airport.flights._in_flight
    airport = open_airport(alone=None)
    asking = asyncio.create_task(airport.flights.ask("b"))
    await airport.turn()
    asking.cancel()
    await airport.turn()
    assert (asking.cancelled(), len(airport.flights._in_flight)) == (True, 1)


async def test_draining_waits_for_what_is_waiting(open_airport: Opener) -> None:
    """After it nothing is in the air and nothing in the queue."""
    airport = open_airport()
    answers = await board(airport, "ab")
    draining = asyncio.create_task(airport.flights.drain())
    for gate in range(2):
        await airport.turn()
        assert not draining.done()
        airport.gates[gate].set()
    await draining
    assert [answer.result() for answer in answers] == ["a", "b"]


def test_the_end_of_the_loop_leaves_those_who_have_a_last_word() -> None:
    """It cancels who is in the air, and what is sent in a `finally` meanwhile still flies."""
    answers: list[Any] = []

    async def main() -> None:
        airport = Airport()
        flying = airport.flights.submit("a")

        async def strategy() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                last = airport.flights.submit("last")
                asyncio.get_running_loop().call_later(0.01, lambda: airport.gates[-1].set())
                answers.append(await last)

        running = asyncio.create_task(strategy())
        await airport.turn()
        answers.extend((flying, running))

    asyncio.run(main())
    flying, running, last = answers
    assert flying.cancelled()
    assert running.cancelled()
    assert last == "last"


async def test_a_flight_that_is_cancelled_before_it_begins_keeps_no_place(open_airport: Opener) -> None:
    """The end of a loop may come just then; who waits flies, and draining ends."""
    airport = open_airport()
    first = airport.flights.submit("a")
    await asyncio.sleep(0)
    (task,) = airport.flights._in_flight
    task.cancel()
    second = airport.flights.submit("b")
    await airport.turn()
    assert first.cancelled()
    assert airport.left == [["b"]]
    airport.gates[0].set()
    assert await second == "b"
    await airport.flights.drain()
