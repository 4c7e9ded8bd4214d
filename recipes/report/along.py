"""A study's layout: one metric along one field or setting, as the paper's tables and plots are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.report.curves import PALETTE
from recipes.report.naming import arms_of, interval, plain
from recipes.report.plots import clean, whiskers, wrapped
from recipes.report.tables import markdown_table

Results = Mapping[str, Any]
WITHOUT = "–"
"""Stands for the value of rows that do not have the setting, such as LoRA's number of experts."""
MARKERS = "osD^vPX"
"""One fewer than the colours, so that no two of the first 56 lines look alike."""


@dataclass
class Line:
    """Rows that differ in nothing but the value along the axis."""

    label: str
    arm: str
    """Name of the first arm."""
    points: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Value along the axis -> the row's entry of the metric."""


def layout(results: Results, key: str) -> tuple[list[str], list[Line]]:
    """The values along the study's `along`, in their order, and the lines over them.

    Args:
        results: The content of results.json, with `along`.
        key: Metric.

    Returns:
        The values in words, `WITHOUT` last if some row has none; and the lines, in the order of
        rows, without rows in which the metric was not measured.
    """
    along, lines = results["along"], {}
    values: dict[str, None] = {}
    for row in results["rows"]:
        entry = row["metrics"].get(key)
        if entry is None or entry["value"] is None:
            continue
        own = {**row["varied"], **row["given"]}
        value = str(own[along]) if along in own else WITHOUT
        values[value] = None
        # Arms that differ in the setting only are one line, so their names are not its name.
        name = row["method"] if along in row["given"] else row["arm"]
        rest = {**row["varied"], **({} if name == row["arm"] else row["given"])}
        rest.pop(along, None)
        words = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in rest.items())
        label = f"{name}, {words}" if words else name
        lines.setdefault(label, Line(label, row["arm"])).points[value] = entry
    ordered = [value for value in values if value != WITHOUT]
    return ordered + [WITHOUT] * (WITHOUT in values), list(lines.values())


def layout_section(results: Results, key: str, title: str, digits: int = 3) -> str:
    """The table, in Markdown; empty for a study without `along`."""
    if not results.get("along"):
        return ""
    values, lines = layout(results, key)
    rows = [
        [plain(line.label), *(_shown(line.points.get(value), digits) for value in values)]
        for line in lines
    ]
    return f"## {title} along `{results['along']}`\n\n" + markdown_table(["", *values], rows)


def _shown(entry: Mapping[str, Any] | None, digits: int) -> str:
    return WITHOUT if entry is None else interval(entry, digits=digits)


def layout_figure(results: Results, key: str, title: str) -> Figure:
    """The plot: a line for each line of the table, with intervals.

    Rows without the setting are level lines, and values that are no numbers are not joined. Of arms
    that neither learn nor adapt, only rivals are drawn.
    """
    values, lines = layout(results, key)
    places = {value: place for place, value in enumerate(v for v in values if v != WITHOUT)}
    arms = arms_of(results)
    shown = {name for name, arm in arms.items() if arm["learns"] or arm["is_adapter"]}
    shown.update(results["rivals"])
    drawn = [one for one in lines if one.arm in shown]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    moving = [line for line in drawn if WITHOUT not in line.points]
    for number, line in enumerate(drawn):
        # Side by side, so that intervals do not hide each other.
        aside = moving.index(line) - (len(moving) - 1) / 2 if line in moving else 0.0
        _draw(axes, line, places, number, 0.24 * aside / max(len(moving) - 1, 1))
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlim(-0.4, max(len(places) - 0.6, 0.4))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(results["along"])
    axes.set_ylabel(wrapped(title, 60))
    axes.set_title(results["name"], fontsize=11)
    clean(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw(axes: Axes, line: Line, places: Mapping[str, int], number: int, shift: float) -> None:
    colour, label = PALETTE[number % len(PALETTE)], wrapped(line.label, 26)
    constant = line.points.get(WITHOUT)
    if constant is not None:
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(constant["value"], color=colour, linestyle=style, label=label)
        axes.axhspan(constant["low"], constant["high"], color=colour, alpha=0.08, linewidth=0)
        return
    shown = [value for value in places if value in line.points]
    x = np.array([places[value] for value in shown]) + shift
    entries: Sequence[Mapping[str, Any]] = [line.points[value] for value in shown]
    spread = np.hstack([np.array(whiskers(entry)) for entry in entries])
    marker = MARKERS[number % len(MARKERS)]
    y = [entry["value"] for entry in entries]
    joined = "-" if all(map(_is_number, places)) else "none"
    axes.errorbar(
        x, y, yerr=spread, color=colour, marker=marker, linestyle=joined, capsize=3, label=label
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
