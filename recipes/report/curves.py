"""The figure of a study's curves: validation and loss of every adapter over its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
DASHES = ("-", "--", ":", "-.")
"""Line styles of the first arms that share a palette's colours, of the next, and so on."""
SHARED = ("#000000", "#777777", "#B0B0B0")
"""Colours of arms that are in every panel."""
KINDS = {
    "validation": "HitRatio@1 on validation rows",
    "loss": "training loss (nats per token)",
}


def has_curves(results: Results) -> bool:
    """Whether some cell has recorded any."""
    return any(cell.get("curves") for cell in results["cells"])


@dataclass(frozen=True)
class Column:
    """One column of the figure: some trainings of one cell."""

    title: str
    curves: Mapping[str, Mapping[str, Sequence[Curve]]]
    """The curves of the cell, by arm and kind."""
    shared: Sequence[str]
    """Arms that are in every column of the cell, in greys."""
    own: Sequence[str]


def curves_figure(results: Results) -> Figure | None:
    """Curves of every cell, one column for each cell and value of the study's setting `panels`.

    Arms without that setting are in every column of their cell, in greys. Lines are means over
    seeds; validation has a mark for each measurement, and thin lines for single seeds. Cells that
    share their trainings share a column.

    Returns:
        None if no curve was recorded.
    """
    if not has_curves(results):
        return None
    columns = [one for words, cell in _cells(results) for one in _columns(results, words, cell)]
    found = [own for column in columns for own in column.curves.values()]
    kinds = [kind for kind in KINDS if any(kind in own for own in found)]
    alike = len({(*one.shared, *one.own) for one in columns}) == 1 < len(columns)
    figure = Figure(
        figsize=(1.5 + (3.4 if alike else 5.2) * len(columns), 1.8 + 3.4 * len(kinds)),
        layout="constrained",
    )
    grid: Any = figure.subplots(len(kinds), len(columns), squeeze=False, sharey="row", sharex=True)
    for place, column in enumerate(columns):
        for row, kind in enumerate(kinds):
            _draw(grid[row][place], column, kind)
            grid[row][place].set_ylabel("" if place else KINDS[kind])
        grid[0][place].set_title(column.title, fontsize=11)
        grid[-1][place].set_xlabel("optimiser step")
        if not alike:
            grid[-1][place].legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False, ncols=3
            )
    if alike:
        drawn = {line.get_label(): line for axes in grid.flat for line in axes.lines}
        lines = {arm: drawn[arm] for arm in (*columns[0].shared, *columns[0].own) if arm in drawn}
        figure.legend(
            lines.values(), lines, loc="outside lower center", fontsize=9, frameon=False, ncols=4
        )
    count = max(len(seeds) for own in found for seeds in own.values())
    means = f"means of {count} seeds" if count > 1 else "one seed"
    figure.suptitle(f"{results['name']}: {means}", fontsize=12)
    return figure


def _cells(results: Results) -> list[tuple[str, Results]]:
    """Words for what varies, and the cell, of all cells with curves; equal curves once."""
    found: list[tuple[list[str], Results]] = []
    for cell in results["cells"]:
        varied = cell.get("varied", {}).items()
        words = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in varied)
        same = [one for one, other in found if other["curves"] == cell.get("curves")]
        if same:
            same[0].append(words)
        elif cell.get("curves"):
            found.append(([words], cell))
    return [("; ".join(words) if len(found) > 1 else "", cell) for words, cell in found]


def _columns(results: Results, words: str, cell: Results) -> list[Column]:
    """The columns of one cell, whose titles begin with these words."""
    curves, setting = cell["curves"], results.get("panels")
    values = {arm["name"]: _panel(arm, setting) for arm in results["arms"] if arm["name"] in curves}
    panels = [value for value in dict.fromkeys(values.values()) if value is not None]
    shared = [name for name, value in values.items() if value is None] if panels else []
    return [
        Column(
            ", ".join(filter(None, (words, "" if panel is None else f"{setting}: {panel}"))),
            curves,
            shared,
            [name for name, value in values.items() if value == panel],
        )
        for panel in panels or [None]
    ]


def _panel(arm: Mapping[str, Any], setting: str | None) -> Any:
    """The column that an arm belongs to; None if it is in all."""
    return None if setting is None else arm["given"].get(setting)


def _draw(axes: Axes, column: Column, kind: str) -> None:
    """Draw the curves of one kind, of all arms of a column."""
    for group, colours, dashes in (
        (column.shared, SHARED, ("--", ":", "-.")),
        (column.own, PALETTE, DASHES),
    ):
        for place, name in enumerate(group):
            seeds = column.curves[name].get(kind, [])
            if seeds:
                again, colour = divmod(place, len(colours))
                style = dashes[again % len(dashes)]
                _line(axes, seeds, kind, colours[colour], style, name)
    clean(axes)


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
