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
from tests.bench.workloads import GROUPS, Bench

DRIVERS = ("motor", "pymongo")


def main() -> None:
    """Run the benchmarks on private servers and print what they found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--driver", choices=DRIVERS, default="motor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement under load")
    parser.add_argument("--quick", action="store_true", help="fewer callers and smaller collections")
    parser.add_argument(
        "--only", nargs="+", choices=[*GROUPS], default=[*GROUPS], metavar="GROUP", help=", ".join(GROUPS)
    )
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
        other = "pymongo" if arguments.driver == "motor" else "motor"
        async with (
            Container(settings) as container,
            Container(settings.model_copy(update={"mongo_driver": other})) as second,
        ):
            print(line(["workload", "ours", "literal", "times the literal (spread)", "of the bare driver", "target"]))
            print(line(["---"] * 6))
            bench = Bench(container, second, arguments.rounds, arguments.seconds)
            try:
                async for figure in bench.run(arguments.only, quick=arguments.quick):
                    print(line(cells(figure)), flush=True)
                    figures.append(figure)
            finally:
                await bench.close()
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine(arguments).items()), file=sys.stderr)
    return figures


def line(cells: list[str]) -> str:
    """One line of the table."""
    return f"| {' | '.join(cells)} |"


def cells(figure: Figure) -> list[str]:
    """The figure in words: medians, and of the ratios to the literal algorithm the spread."""
    if "ours" not in figure.values:
        middles = {name: median(found) for name, found in figure.values.items()}
        parts = ", ".join(f"{value:.2f} at {name}" for name, value in middles.items())
        first, *_, last = middles.values()
        return [figure.name, f"{parts} {figure.unit}", "", f"{last / first:.2f} from first to last", "", figure.target]
    found = [figure.name, number(figure, "ours"), "", "", "", figure.target]
    for base in ("literal", "one by one", "rows", "pipeline", "store", "upserts", *DRIVERS):
        if base in figure.values:
            ratios = figure.ratios("ours", base)
            found[2] = number(figure, base)
            found[3] = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    if "floor" in figure.values:
        found[4] = f"{median(figure.ratios('ours', 'floor')):.2f}"
    return found


def number(figure: Figure, variant: str) -> str:
    """A median with its unit."""
    middle = figure.middle(variant)
    return f"{middle:,.0f}/s" if figure.unit == "/s" else f"{middle:,.2f} {figure.unit}"


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
