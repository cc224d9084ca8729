"""How figures are taken: all variants in turn within one run, several rounds, ratios per round, median and spread."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ("Figure", "compare", "load")


@dataclass
class Figure:
    """One line of the table."""

    name: str
    unit: str
    better: str
    """``higher`` or ``lower``."""
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """The measurements of each variant, round by round."""
    target: str = ""

    def middle(self, variant: str) -> float:
        return median(self.values[variant])

    def ratios(self, variant: str, base: str) -> list[float]:
        """How much better a variant is than the base, round by round."""
        pairs = zip(self.values[variant], self.values[base], strict=True)
        return [one / other if self.better == "higher" else other / one for one, other in pairs]

    def as_dict(self) -> dict[str, Any]:
        ratios = {
            f"ours_to_{base}": {"median": median(found), "min": min(found), "max": max(found)}
            for base in self.values
            if base != "ours" and "ours" in self.values
            for found in [self.ratios("ours", base)]
        }
        return {"name": self.name, "unit": self.unit, "target": self.target, "values": self.values, **ratios}


async def compare(
    name: str,
    variants: Mapping[str, Callable[[], Awaitable[float]]],
    *,
    unit: str,
    rounds: int,
    better: str = "higher",
    target: str = "",
) -> Figure:
    """Run the variants in turn, `rounds` times, each round in another order, after one that does not count."""
    figure = Figure(name, unit, better, {variant: [] for variant in variants}, target)
    order = list(variants)
    for number in range(rounds + 1):
        for variant in order:
            value = await variants[variant]()
            if number:
                figure.values[variant].append(value)
        order = [*order[1:], order[0]]
    return figure


async def load(callers: int, seconds: float, call: Callable[[int], Awaitable[int]]) -> float:
    """Calls per second of so many callers, each of which calls again as soon as it has its answer."""
    stop, done = time.perf_counter() + seconds, 0

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < stop:
            answered = await call(number)  # on a line of its own: `done` may change meanwhile
            done += answered
            number += callers

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return done / (time.perf_counter() - started)
