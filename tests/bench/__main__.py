"""``python -m tests.bench``: a table on standard output, JSON with ``--json``, a picture with ``--plot``."""

import argparse
import asyncio
import json
import platform
import sys
from importlib import import_module
from statistics import median
from typing import Any

from backtest_persist import Container, Settings, embedded
from tests.bench.measure import Figure
from tests.bench.workloads import Bench


def main() -> None:
    """Run the benchmarks on private servers and print what they found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--driver", choices=["motor", "pymongo"], default="motor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement under load")
    parser.add_argument("--quick", action="store_true", help="fewer callers and smaller collections")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios to FILE")
    arguments = parser.parse_args()
    factory: Any = None
    if arguments.uvloop:
        factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        figures = runner.run(run(arguments))
    if arguments.json:
        document = {"machine": machine(arguments), "figures": [figure.as_dict() for figure in figures]}
        with open(arguments.json, "w") as file:
            json.dump(document, file, indent=1)
    if arguments.plot:
        from tests.bench.plot import draw

        draw(figures, arguments.plot, arguments.driver)


async def run(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    async with embedded() as servers:
        given: dict[str, Any] = {"mongo_driver": arguments.driver, "redis_timeout_ms": 5000}
        settings = Settings(**{**servers.model_dump(), **given})
        async with Container(settings) as container:
            print(" | ".join(["workload", "ours", "baseline", "ours / baseline (spread)", "ours / floor", "target"]))
            print("|".join(["---"] * 6))
            async for figure in Bench(container, arguments.rounds, arguments.seconds).run(quick=arguments.quick):
                print(row(figure), flush=True)
                figures.append(figure)
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine(arguments).items()), file=sys.stderr)
    return figures


def row(figure: Figure) -> str:
    """One line of the table."""
    if "ours" not in figure.values:
        first = median(next(iter(figure.values.values())))
        parts = [f"{name}: {median(found):.2f}" for name, found in figure.values.items()]
        growth = median(list(figure.values.values())[-1]) / first
        return " | ".join([figure.name, f"{', '.join(parts)} {figure.unit}", "", f"{growth:.2f}x", "", figure.target])
    ours = f"{figure.middle('ours'):,.2f} {figure.unit}" if figure.unit != "/s" else f"{figure.middle('ours'):,.0f}/s"
    cells = [figure.name, ours, "", "", "", figure.target]
    for base, column in (("baseline", 3), ("rows", 3), ("floor", 4)):
        if base in figure.values:
            ratios = figure.ratios("ours", base)
            cells[column] = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            if column == 3:
                cells[2] = f"{figure.middle(base):,.0f}{figure.unit}"
    return " | ".join(cells)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    import os

    return {
        "driver": arguments.driver,
        "uvloop": arguments.uvloop,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": arguments.rounds,
    }


if __name__ == "__main__":
    main()
