"""The results of a study: a table with one row for each arm in each cell, a page and a plot."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from recipes.published import Published
from recipes.report.adapters import gates_section, rivals_section, sizes_section
from recipes.report.along import layout_figure, layout_section
from recipes.report.clusters import clusters_section
from recipes.report.curves import curves_figure, has_curves
from recipes.report.gate_maps import gates_figure, has_maps
from recipes.report.naming import (
    NOTHING,
    arms_of,
    headline_key,
    in_markdown,
    interval,
    main_columns,
    plain,
    resampled,
)
from recipes.report.plots import clean, whiskers, wrapped
from recipes.report.published import published_sections
from recipes.report.tables import markdown_table
from recipes.report.tuning import tuning_section
from recipes.report.verdict import headline_keys, headlines, verdict

Results = Mapping[str, Any]


def study_results(
    name: str,
    varied: Sequence[Mapping[str, Any]],
    found: Sequence[Results],
    columns: Sequence[str] = (),
    published: Sequence[Published] = (),
    *,
    along: str | None = None,
    rivals: Sequence[str] = (),
    panels: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of DIR/results.json.

    Args:
        name: Name of the study.
        varied: For each cell, its values of the varied fields.
        found: For each cell, the content of its `results.json`.
        columns: Keys of the metrics in the table; none stands for the main ones.
        published: Published figures to hold the table against.
        along: The field or setting that runs along the columns of the layout.
        rivals: Names of arms that every other adapter is compared with.
        panels: A setting of arms by which the figure of curves is divided.
        notes: How to read the page, in Markdown.

    Returns:
        `differs` holds the names of the settings that differ between rows; `rows` holds, for each
        cell and arm, these settings, the metrics and the number of parameters; `arms` describes
        the arms; `cells` holds each cell's comparisons, caveats and configuration.
    """
    rows = [
        _row(values, arm, results)
        for values, results in zip(varied, found, strict=True)
        for arm in results["arms"]
    ]
    own = dict.fromkeys(key for row in rows for key in row["given"])
    # An arm's settings may follow what varies, so they belong to its rows.
    arms = {
        arm["name"]: {key: value for key, value in arm.items() if key != "settings"}
        for results in found
        for arm in results["arms"]
    }
    return {
        "name": name,
        "differs": [*dict.fromkeys(key for values in varied for key in values), *own],
        "columns": list(columns),
        "published": [asdict(one) for one in published],
        "along": along,
        "rivals": list(rivals),
        "panels": panels,
        "notes": list(notes),
        "arms": list(arms.values()),
        "rows": rows,
        "cells": [
            {
                "varied": dict(values),
                **{key: results[key] for key in ("llm", "dataset", "evaluated", "caveats")},
                **{key: results[key] for key in ("metrics", "comparisons", "config", "versions")},
                **{key: results[key] for key in ("curves", "modulations", "seconds", "tuning")},
                "clusters": results.get("clusters", {}),
                "gates": {name: _unnamed(one) for name, one in results["gates"].items()},
            }
            for values, results in zip(varied, found, strict=True)
        ],
    }


def _unnamed(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's summary, which keeps the weights of single rows but not whose they are."""
    return {key: gate[key] for key in gate if key not in ("user_ids", "rows")}


def _row(varied: Mapping[str, Any], arm: Mapping[str, Any], results: Results) -> dict[str, Any]:
    metrics = {e["key"]: e for e in results["metrics"] if e["method"] == arm["name"]}
    return {
        "arm": arm["name"],
        "method": arm["method"],
        "title": arm["title"],
        "varied": dict(varied),
        "given": arm["given"],
        "settings": arm["settings"],
        "num_rows": results["evaluated"]["num_rows"],
        "num_users": results["evaluated"]["num_users"],
        "seeds": max((len(e.get("seeds", [])) for e in metrics.values()), default=0),
        "trainable_parameters": results["trainable_parameters"].get(arm["name"], {}).get("total"),
        "parameters": results["trainable_parameters"].get(arm["name"]),
        "metrics": metrics,
    }


FIGURES = ("study", "curves", "gates")
"""Plots of a study: its table, curves over the trainings, weights of experts."""


def study_figures(results: Results) -> dict[str, Figure]:
    """The plots of a study by name; curves and gates only if there is something to show."""
    found = (study_figure(results), curves_figure(results), gates_figure(results))
    return {name: figure for name, figure in zip(FIGURES, found, strict=True) if figure is not None}


def study_page(results: Results, figure: str, curves: str, gates: str) -> str:
    """The page DIR/study.md, written from results.json alone.

    Args:
        results: The content of results.json.
        figure: File name of the plot of the table.
        curves: File name of the plot of curves, shown if any were recorded.
        gates: File name of the plot of gates' weights, shown if any were kept.
    """
    results = in_markdown(results)
    first, arms = results["cells"][0], arms_of(results)
    caveats = ranged(note for cell in results["cells"] for note in cell["caveats"])
    confidence = first["config"]["evaluate"]["confidence"]
    sections = [
        f"# Study: {results['name']}",
        "\n".join(["> **Read this first**\n>", *(f"> - {note}" for note in caveats)]),
        f"{_what_was_run(results)} In brackets: {confidence:.0%} intervals by bootstrap over "
        f"{_resampled(results)}.",
        _notes(results),
        layout_section(results, _figure_key(results), _figure_title(results), _digits(results)),
        "## All figures" if results.get("along") else "",
        _table(results),
        _arms(results) if _named(results) else "",
        published_sections(results),
        rivals_section(results) if results.get("rivals") else "",
        f"![{_figure_title(results)}]({figure})",
        f"![Curves over training]({curves})" if has_curves(results) else "",
        *of_cells(results, lambda cell: _tuning(results, cell)),
        *of_cells(results, lambda cell: clusters_section(cell.get("clusters", {}), arms)),
        sizes_section(results) if results.get("rivals") else "",
        gates_section(results) if results.get("rivals") or has_maps(results) else "",
        f"![Weights of experts]({gates})" if has_maps(results) else "",
        "## The best arm against its strongest rival\n\n" + "\n".join(_verdicts(results)),
        f"## How to reproduce\n\n{_reproduction(results)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


FIGURE = re.compile(r"[+-]?\d+\.\d+ \[[^]]*\]|\d+(?=(?: sampled)? candidates)")
"""A figure with its interval, or a number of candidates."""
GAP = "\0"
"""Stands for a figure, which no text holds."""


def ranged(texts: Iterable[str]) -> list[str]:
    """Texts, each once; those that differ in figures alone are one with their ranges."""
    alike: dict[str, list[list[str]]] = {}
    for text in texts:
        alike.setdefault(FIGURE.sub(GAP, text), []).append(FIGURE.findall(text))
    found = []
    for text, figures in alike.items():
        for values in zip(*figures, strict=True):
            least, most = (pick(values, key=_numbers) for pick in (min, max))
            text = text.replace(GAP, least if least == most else f"{least} to {most}", 1)
        found.append(text)
    return found


def _numbers(figure: str) -> list[float]:
    return [float(one) for one in re.findall(r"[+-]?\d+(?:\.\d+)?", figure)]


def of_cells(results: Results, section: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """A section of each cell; equal ones once, headed by the values of their cells."""
    found: dict[str, list[str]] = {}
    for cell in results["cells"]:
        words = ", ".join(f"`{key}: {_shown(value)}`" for key, value in cell["varied"].items())
        found.setdefault(section(cell), []).append(words)
    if len(found) == 1:
        return list(found)
    headed = {text.partition("\n"): "; ".join(cells) for text, cells in found.items() if text}
    return [f"{head} ({cells}){line}{rest}" for (head, line, rest), cells in headed.items()]


def _tuning(results: Results, cell: Mapping[str, Any]) -> str:
    rows = cell["config"]["adapt"].get("validate_rows", 0)
    return tuning_section(cell.get("tuning", {}), arms_of(results), rows)


def _reproduction(results: Results) -> str:
    """The first cell's configuration, and what varies from it."""
    first, *others = results["cells"]
    given = ", ".join(f"`{key}: {_shown(value)}`" for key, value in first["varied"].items())
    differ = f"The table's cells differ in what varies only; this one has {given}.\n\n"
    return (
        f"{differ if others else ''}<details><summary>configuration</summary>\n\n```yaml\n"
        + yaml.safe_dump(first["config"], sort_keys=False)
        + "```\n\n</details>"
    )


def _notes(results: Results) -> str:
    """How to read the page, in the study's own words."""
    notes = results.get("notes")
    return "## How to read it\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _named(results: Results) -> bool:
    """Whether arms go by their names, which `_arms` explains, and not by their settings."""
    return bool(results["published"] or results.get("rivals"))


def _table(results: Results) -> str:
    """One line for each arm in each cell: settings that differ, and metrics."""
    named = _named(results)
    varied = list(dict.fromkeys(key for row in results["rows"] for key in row["varied"]))
    settings, digits = varied if named else results["differs"], _digits(results)
    columns = _columns(results)
    trains = any(row["trainable_parameters"] is not None for row in results["rows"])
    methods = {arm["name"]: arm["method"] for arm in results["arms"]}
    head = ["arm" if named else "method", *settings, *columns.values()]
    table = [
        [
            row["arm"] if named else methods[row["arm"]],
            *(plain(_shown({**row["varied"], **row["given"]}.get(key))) for key in settings),
            *(_cell(row["metrics"].get(key), digits) for key in columns),
            *([_parameters(row)] if trains else []),
            str(row["seeds"] or "–"),
        ]
        for row in results["rows"]
    ]
    return markdown_table([*head, *(["trained parameters"] if trains else []), "seeds"], table)


def _digits(results: Results) -> int:
    """Digits of figures: the published number of them beside published figures."""
    return 4 if results["published"] else 3


def _arms(results: Results) -> str:
    """What each arm is: its method and the settings in which it differs from the experiment."""
    return "\n".join(f"- **{arm['name']}**: {arm['title']}" for arm in results["arms"])


def _parameters(row: Mapping[str, Any]) -> str:
    count = row["trainable_parameters"]
    return "–" if count is None else f"{count:,}"


def _figure_key(results: Results) -> str:
    """The metric of the plot: the first of a study's own columns, or the headline."""
    return results["columns"][0] if results["columns"] else headline_key(results["cells"][0])


def _figure_title(results: Results) -> str:
    """What the plot shows, such as `HitRatio@10`."""
    name, at, k = _figure_key(results).removesuffix("/ranking").partition("@")
    return {"hit_ratio": "HitRatio", "ndcg": "NDCG", "mrr": "MRR"}.get(name, name) + at + k


def _what_was_run(results: Results) -> str:
    cells = results["cells"]
    datasets = sorted({cell["dataset"]["dataset"] for cell in cells})
    models = sorted({(cell["llm"] or {"name": "none"})["name"] for cell in cells})
    sizes = sorted({(c["evaluated"]["num_rows"], c["evaluated"]["num_users"]) for c in cells})
    counts = ", ".join(f"{rows:,} rows of {users:,} users" for rows, users in sizes)
    return (
        f"Data: {', '.join(datasets)}. Language model: {', '.join(models)}. Evaluated: "
        f"{counts}, {cells[0]['evaluated']['split']} split, {_words(results)}."
    )


def _words(results: Results) -> str:
    """What targets were ranked among, in any of the cells."""
    found = ranged(cell["evaluated"]["words"] for cell in results["cells"])
    return " or ".join(found)


def _columns(results: Results) -> dict[str, str]:
    """The metrics of the table: the study's own, or the main figures of all cells."""
    if results["columns"]:
        return {key: key.removesuffix("/ranking") for key in results["columns"]}
    return {key: head for cell in results["cells"] for key, head in main_columns(cell).items()}


def shown_metrics(results: Results) -> set[str]:
    """Keys of the metrics that the page, its plots and its verdicts read."""
    published = [own for one in results["published"] for own in one["figures"].values()]
    return {
        *_columns(results),
        *(key for own in published for key in own),
        *(key for cell in results["cells"] for key in headline_keys(cell)),
        _figure_key(results),
    }


def _resampled(results: Results) -> str:
    return max(map(resampled, results["cells"]), key=len)


def _verdicts(results: Results) -> list[str]:
    lines = []
    for cell in results["cells"]:
        arms = arms_of(results)
        where = ", ".join(f"{key} {plain(_shown(v))}" for key, v in cell["varied"].items())
        known = {entry["method"] for entry in cell["metrics"]}
        own = {**cell, "arms": [arm for arm in results["arms"] if arm["name"] in known]}
        lines += [
            f"- {f'{where}: ' if where else ''}{verdict(entry, arms)}" for entry in headlines(own)
        ]
    return lines or [NOTHING]


def study_figure(results: Results) -> Figure:
    """One metric of the table: along the study's axis, or a point and interval for each row."""
    key = _figure_key(results)
    if results.get("along"):
        return layout_figure(results, key, f"{_figure_title(results)}, {_words(results)}")
    rows = [row for row in results["rows"] if row["metrics"].get(key, {}).get("value") is not None]
    named = "arm" if _named(results) else "title"  # as in the table
    lines = [wrapped(_line(row, named)) for row in rows]
    height = 1.6 + sum(0.18 * (2 + line.count("\n")) for line in lines)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    arms = arms_of(results)
    for place, row in enumerate(rows):
        entry = row["metrics"][key]
        colour = arms[row["arm"]]["colour"]
        axes.errorbar(entry["value"], place, xerr=whiskers(entry), color=colour, capsize=4)
        axes.scatter([entry["value"]], [place], color=[colour], s=40, zorder=3)
    axes.set_yticks(np.arange(len(rows)), lines)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(textwrap.fill(f"{_figure_title(results)}, {_words(results)}", 60))
    axes.set_title(f"{results['name']}\nintervals over {_resampled(results)}", fontsize=11)
    clean(axes)
    return figure


def _line(row: Mapping[str, Any], named: str) -> str:
    where = ", ".join(f"{key.split('.')[-1]} {_shown(v)}" for key, v in row["varied"].items())
    return f"{row[named]} ({where})" if where else row[named]


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _cell(entry: Mapping[str, Any] | None, digits: int) -> str:
    return "–" if entry is None else interval(entry, digits=digits)
