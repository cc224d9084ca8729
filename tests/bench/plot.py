"""The ratios as a picture."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportMissingImports=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from statistics import median

import matplotlib

from tests.bench.measure import Figure

__all__ = ("draw",)


def draw(figures: Sequence[Figure], path: str, driver: str) -> None:
    """Bars of ours against the literal algorithm, with the spread; the line is the literal algorithm."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [figure for figure in figures if "literal" in figure.values]
    found = [figure.ratios("ours", "literal") for figure in shown]
    middles = [median(ratios) for ratios in found]
    spread = [
        [middle - min(ratios) for middle, ratios in zip(middles, found, strict=True)],
        [max(ratios) - middle for middle, ratios in zip(middles, found, strict=True)],
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.38 * len(shown) + 1.2))
    names = [one.name for one in shown]
    axes.barh(names, middles, xerr=spread, color="#2a6f97", ecolor="#555555", capsize=2)
    axes.axvline(1, color="#bb3e03", linewidth=1.2)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel(f"times the literal algorithm in the same run (log scale; driver: {driver})")
    for index, middle in enumerate(middles):
        axes.text(max(found[index]) * 1.06, index, f"{middle:.1f}x", va="center", fontsize=8)
    axes.set_xlim(left=0.5, right=max(max(ratios) for ratios in found) * 2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
