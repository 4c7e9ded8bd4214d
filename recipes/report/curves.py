"""The figure of a study's curves: validation and loss of every adapter over its training."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.report.plots import (
    Curve,
    clean,
    mean_curve,
    moving_average,
    points_of,
    smoothing_window,
)

Results = Mapping[str, Any]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F00")
"""Colours of the arms of a panel, in their order (Okabe and Ito's, and two more)."""
SHARED = ("#000000", "#777777", "#B0B0B0")
"""Colours of arms that are in every panel."""
KINDS = {
    "validation": "HitRatio@1 on validation rows",
    "loss": "training loss (nats per token)",
}


def has_curves(results: Results) -> bool:
    """Whether the first cell has recorded any."""
    return bool(results["cells"][0].get("curves"))


def curves_figure(results: Results) -> Figure | None:
    """Curves of the first cell, one column for each value of the study's setting `panels`.

    The title names the cell, where there are several.

    Arms without that setting are in every column, in greys. Lines are means over seeds; validation
    has a mark for each measurement, and thin lines for single seeds.

    Returns:
        None if no curve was recorded.
    """
    if not has_curves(results):
        return None
    curves = results["cells"][0]["curves"]
    kinds = [kind for kind in KINDS if any(kind in own for own in curves.values())]
    arms = [arm for arm in results["arms"] if arm["name"] in curves]
    setting = results.get("panels")
    values = list(dict.fromkeys(value for arm in arms if (value := _panel(arm, setting))))
    columns = values or [None]
    figure = Figure(
        figsize=(1.5 + 5.2 * len(columns), 1.8 + 3.4 * len(kinds)), layout="constrained"
    )
    grid: Any = figure.subplots(len(kinds), len(columns), squeeze=False, sharey="row", sharex=True)
    for column, value in enumerate(columns):
        shared = [arm for arm in arms if values and _panel(arm, setting) is None]
        own = [arm for arm in arms if _panel(arm, setting) == value and arm not in shared]
        for row, kind in enumerate(kinds):
            axes = grid[row][column]
            for group, colours in ((shared, SHARED), (own, PALETTE)):
                for place, arm in enumerate(group):
                    seeds = curves[arm["name"]].get(kind, [])
                    if seeds:
                        style = "--" if colours is SHARED else "-"
                        _line(axes, seeds, kind, colours[place % len(colours)], style, arm["name"])
            clean(axes)
            if column == 0:
                axes.set_ylabel(KINDS[kind])
        grid[0][column].set_title("" if value is None else f"{setting}: {value}", fontsize=11)
        grid[-1][column].set_xlabel("optimiser step")
        grid[-1][column].legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False, ncols=3
        )
    count = max(len(seeds) for own in curves.values() for seeds in own.values())
    means = f"means of {count} seeds" if count > 1 else "one seed"
    figure.suptitle(f"{results['name']}: {_of_cell(results)}{means}", fontsize=12)
    return figure


def _of_cell(results: Results) -> str:
    """What distinguishes the first cell, for a title; empty where there is no other."""
    if len(results["cells"]) == 1:
        return ""
    varied = results["cells"][0]["varied"].items()
    return ", ".join(f"{key} {value}" for key, value in varied) + " alone, "


def _panel(arm: Mapping[str, Any], setting: str | None) -> Any:
    """The column that an arm belongs to; None if it is in all."""
    return None if setting is None else arm["given"].get(setting)


def _line(
    axes: Axes,
    seeds: Sequence[Curve],
    kind: str,
    colour: str,
    style: str,
    label: str,
) -> None:
    """Draw the curves of one arm."""
    steps, mean = mean_curve(seeds, kind)
    if kind == "loss":
        mean, marker = moving_average(mean, smoothing_window(len(steps))), ""
    else:
        marker = "o"
        for single in seeds if len(seeds) > 1 else ():
            axes.plot(
                *points_of(single, kind), color=colour, alpha=0.3, linewidth=0.8, linestyle=style
            )
    axes.plot(
        steps,
        mean,
        color=colour,
        linestyle=style,
        linewidth=1.8,
        marker=marker,
        markersize=3.5,
        label=label,
    )
