"""The three kinds of plots in a report. Without pyplot they need no display or global state."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from recipes.artifacts import written_whole
from recipes.report.naming import GENERATED, Arms, arms_of, headline_key, resampled, several_seeds
from recipes.scoring.arrays import Floats

CEILINGS = {
    "last_item": ("ceiling given the last item", (0, (1, 1.5))),
    "oracle": ("ceiling given the user's kind", (0, (5, 1.5, 1, 1.5))),
}
"""Attainable values of HitRatio@1 in the synthetic world, with legend and line style."""
WINDOW = 5
"""Maximum number of logged points in the moving average of loss curves."""
Curve = Sequence[Mapping[str, float]]
"""Points `{"step": .., KIND: ..}` of one training."""


def save(figure: Figure, path: Path, *more: Path) -> None:
    """Write PNG and SVG files, as their names end, each whole or not at all.

    SVG files keep text as text, and are the same for the same figure. Two dollar signs in a name or
    a setting's value make no formula.
    """
    for words in figure.findobj(Text):
        words.set_parse_math(False)  # type: ignore[attr-defined]
    for one in (path, *more):
        kind = one.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else None
        fixed: Any = {"svg.fonttype": "none", "svg.hashsalt": "recipes"}
        with written_whole(one) as temporary, rc_context(fixed):
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # the layout is computed once, for the first file


def wrapped(title: str, width: int = 40) -> str:
    """An arm's title in at most four lines, so that it leaves room for the axes."""
    return textwrap.fill(title, width, max_lines=4, placeholder=" …")


def styles(arms: Arms) -> dict[str, tuple[Any, Any]]:
    """Colour and line style of each arm: those of its method, paler for each further arm of it."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, arm in arms.items():
        earlier = [other for other in found if arms[other]["method"] == arm["method"]]
        pale = 1 - 0.8 ** len(earlier)
        colour = [c + (1 - c) * pale for c in to_rgb(arm["colour"])]
        line = arm["line"]
        found[name] = (colour, line if isinstance(line, str) else (line[0], tuple(line[1])))
    return found


def loss_figure(curves: Mapping[str, Sequence[Curve]], results: Mapping[str, Any]) -> Figure:
    """Training loss of each arm over optimiser steps.

    Args:
        curves: For each arm, the loss curve of each seed, with points `{"step": .., "loss": ..}`.
        results: The results, as `collect` returns them.
    """
    arms = arms_of(results)
    drawn = styles({name: arms[name] for name in curves})
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for method, seeds in curves.items():
        colour, style = drawn[method]
        for curve in seeds:
            axes.plot(*points_of(curve, "loss"), color=colour, alpha=0.25, linewidth=0.9)
        steps, losses = mean_curve(seeds, "loss")
        window = smoothing_window(len(steps))
        smooth = moving_average(losses, window)
        label = wrapped(arms[method]["title"])
        axes.plot(steps, smooth, color=colour, linestyle=style, linewidth=2.2, label=label)
    first = next(iter(curves.values()))
    seeds_shown = max(map(len, curves.values()))
    window = smoothing_window(len(mean_curve(first, "loss")[0]))
    average = f"moving average over {window} logged points" if window > 1 else "mean over seeds"
    axes.set_title(
        f"Training loss, {seeds_shown} {'seed' if seeds_shown == 1 else 'seeds'}\n"
        f"bold: {average}; thin: each seed as logged",
        fontsize=11,
    )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("cross entropy of the answer (nats per token)")
    clean(axes)
    axes.legend(frameon=False)
    return figure


def points_of(curve: Curve, kind: str) -> tuple[Floats, Floats]:
    """Steps and values of a curve, float64 [n] each."""
    points = np.array([[point["step"], point[kind]] for point in curve], dtype=np.float64)
    return points[:, 0], points[:, 1]


def mean_curve(seeds: Sequence[Curve], kind: str) -> tuple[Floats, Floats]:
    """The mean over seeds at the steps that all of them have: steps and values, float64 [n] each.

    Trainings of one arm differ in length where patience, or a choice among trials, ends them.
    """
    found = [{point["step"]: point[kind] for point in curve} for curve in seeds]
    steps = sorted(set(found[0]).intersection(*found[1:]))
    means = [np.mean([one[step] for one in found]) for step in steps]
    return np.array(steps, dtype=np.float64), np.array(means, dtype=np.float64)


def smoothing_window(points: int) -> int:
    """Number of points in the moving average: odd, at most `WINDOW`, about a sixth of the curve."""
    return min(WINDOW, (points // 6) | 1)


def moving_average(values: Floats, window: int) -> Floats:
    """Centred moving average: float64 [n] -> [n]. At the ends it takes the points that exist."""
    if not len(values):
        return values
    kernel = np.ones(window)
    # Mode "full" is cut by hand, since "same" returns `window` points for a shorter curve.
    start = (window - 1) // 2
    cut = slice(start, start + len(values))
    counts = np.convolve(np.ones(len(values)), kernel)[cut]
    return np.convolve(values, kernel)[cut] / counts


def gate_figure(arm: str, summary: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """Heat map of the gate weights of `gates.json`'s users, and below them the mean of all rows."""
    title, shown = arms_of(results)[arm]["title"], np.array(summary["weights"])
    table = np.vstack([shown, summary["mean_weights"]])
    users = [f"user {user}" for user in summary["user_ids"]]
    figure = Figure(figsize=(1.6 + 1.15 * table.shape[1] + 1.2, 1.7 + 0.36 * len(table)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = "black" if value > 0.55 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.axhline(len(shown) - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(table.shape[1]), [f"expert {k + 1}" for k in range(table.shape[1])])
    axes.set_yticks(range(len(table)), [*users, f"mean of {summary['num_rows']} rows"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    heading = f"{title}: gate weights of {len(shown)} users, seed {summary['seed']}"
    axes.set_title(
        f"{textwrap.fill(heading, 20 + 10 * table.shape[1])}\n"
        f"mean entropy {summary['mean_entropy']:.2f} nats (uniform: "
        f"{summary['uniform_entropy']:.2f})",
        fontsize=11,
    )
    figure.colorbar(image, ax=axes, label="weight of the expert", ticks=[0, 0.25, 0.5, 0.75, 1])
    return figure


def kinds(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Metrics in the bar chart, with legend and colour."""
    among = "candidates" if results["evaluated"]["candidates"] == "sampled" else "items"
    ranked = {headline_key(results): (f"ranked {among}", "#E69F00")}
    if results["evaluated"]["headline"] > 1:  # generated answers have no other HitRatio than @1
        return ranked
    return {GENERATED: ("generated answer, of total", "#0072B2"), **ranked}


def hit_ratio_figure(results: Mapping[str, Any]) -> Figure:
    """HitRatio of every arm as bars with intervals; lines show a random order and ceilings."""
    shown = kinds(results)
    entries = {(entry["method"], entry["key"]): entry for entry in results["metrics"]}
    arms = arms_of(results)
    bars = [
        (name, kind, entries[name, kind])
        for name in arms
        for kind in shown
        if entries.get((name, kind), {}).get("value") is not None
        and entries[name, kind].get("interval") != "exact"
    ]
    centres, labels = _bar_positions([method for method, _, _ in bars])
    figure = Figure(figsize=(8, 2.1 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for (_, kind, entry), centre in zip(bars, centres, strict=True):
        _bar(axes, centre, entry, *shown[kind])
    evaluated = results["evaluated"]
    chance = evaluated["chance"]
    line = f"random order ({chance:.3f})"
    axes.axvline(chance, color="black", linestyle="--", linewidth=1.2, label=line)
    ceilings = (results["ceilings"] or {}) if evaluated["headline"] == 1 else {}
    for name, ceiling in ceilings.items():
        label, style = CEILINGS[name]
        line = f"{label} ({ceiling:.3f})"
        axes.axvline(ceiling, color="#666666", linestyle=style, linewidth=1.4, label=line)
    titles = [wrapped(arms[name]["title"]) for _, name in labels]
    axes.set_yticks([centre for centre, _ in labels], titles)
    axes.set_ylim(max(centres) + 0.75, min(centres) - 0.75)
    marks = [chance, *ceilings.values()]
    axes.set_xlim(0, max(*marks, *(entry["high"] for _, _, entry in bars)) * 1.12)
    axes.set_xlabel(f"HitRatio@{evaluated['headline']}, {evaluated['words']}")
    axes.set_title(_hit_ratio_title(results), fontsize=11)
    _legend(figure, axes, [label for label, _ in shown.values()])
    clean(axes)
    axes.tick_params(axis="y", length=0)
    return figure


def _hit_ratio_title(results: Mapping[str, Any]) -> str:
    """Title that says what was measured, as a plot may be shown without its report."""
    evaluated, config = results["evaluated"], results["config"]
    llm = results["llm"]
    model = ""
    if llm is not None:
        model = f", {'stand-in language model' if llm['stand_in'] else llm['name']}"
    circles = "; circles: single seeds" if several_seeds(results) else ""
    return (
        f"{results['name']}{model}\n"
        f"n = {evaluated['num_rows']} rows of {evaluated['num_users']} users, "
        f"{evaluated['split']} split\n"
        f"lines: {config['evaluate']['confidence']:.0%} intervals over {resampled(results)}"
        f"{circles}"
    )


def _bar_positions(methods: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Vertical positions of the bars, grouped by arm, and (centre, arm) of each group."""
    positions: list[float] = []
    groups: dict[str, list[float]] = {}
    for index, method in enumerate(methods):
        if index:
            positions.append(positions[-1] + (0.8 if method == methods[index - 1] else 1.25))
        else:
            positions.append(0.0)
        groups.setdefault(method, []).append(positions[-1])
    return positions, [(sum(group) / len(group), method) for method, group in groups.items()]


def whiskers(entry: Mapping[str, Any]) -> list[list[float]]:
    """Distances from a figure to the ends of its interval, as matplotlib takes them.

    Rounding can put a figure that all resamples share beside its interval by a last digit.
    """
    value = entry["value"]
    return [[max(0.0, value - entry["low"])], [max(0.0, entry["high"] - value)]]


def _bar(axes: Axes, centre: float, entry: Mapping[str, Any], label: str, colour: str) -> None:
    value = entry["value"]
    axes.barh(centre, value, height=0.7, color=colour, label=label, alpha=0.85)
    axes.errorbar(value, centre, xerr=whiskers(entry), color="black", capsize=4, linewidth=1.4)
    seeds = [figure for figure in entry["per_seed"] if figure is not None]
    if len(seeds) > 1:
        axes.scatter(
            seeds, [centre] * len(seeds), s=22, facecolors="white", edgecolors="black", zorder=3
        )
    rightmost = max([entry["high"], *seeds])
    axes.annotate(
        f"{value:.3f}", (rightmost, centre), xytext=(7, 0), textcoords="offset points", va="center"
    )


def _legend(figure: Figure, axes: Axes, first: Sequence[str]) -> None:
    """Legend below the axes, with one entry for each kind of bar and of line."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(reversed(labels), reversed(handles), strict=True))
    known = [label for label in first if label in by_label]
    order = [*known, *(label for label in by_label if label not in known)]
    figure.legend(
        [by_label[label] for label in order],
        order,
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )


def clean(axes: Axes) -> None:
    """Remove two spines, and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if axes.patches else "both", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
