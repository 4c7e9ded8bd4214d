"""Puts a finished study into docs/results: `python docs/publish.py RUNS/STUDY`.

Of a run's folder, results.json, report.md and plots go to docs/results/experiments/NAME, and
gradients.json to docs/results/gradients, both without users and items.

Writes NAME.json, NAME.md, NAME.png and, of a study that has them, NAME-curves.png and
NAME-gates.png. The JSON is the study's results.json without paths of the machine that it ran on,
of which an encoder's keeps its last word, with the comparisons of its headline only, and without
metrics and settings that no table or plot of the page shows. Points of curves have five digits, and
the JSON is one line: both together make it half as large. Plots have 256 colours, which makes them
a third as large. The page is made from the JSON alone.

Of a published NAME.json, or a published run's folder, the same files are written anew.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from recipes.artifacts import read_json, write_json, write_text, written_whole
from recipes.gradients.report import gradient_figure, gradient_page, without_users
from recipes.report.markdown import render
from recipes.report.naming import headline_key
from recipes.report.plots import save
from recipes.report.report import PLOTS, REPORT, run_figures
from recipes.report.report import RESULTS as RUN_RESULTS
from recipes.report.study import FIGURES, shown_metrics, study_figures, study_page

RESULTS = Path(__file__).parent / "results"


def shortened(results: dict[str, Any]) -> dict[str, Any]:
    """The results, without folders of the machine, and what no page shows."""
    shown = shown_metrics(results)
    for row in results["rows"]:
        row["metrics"] = {key: entry for key, entry in row["metrics"].items() if key in shown}
        row.pop("settings", None)  # they follow from `given` and the cell's configuration
    for cell in results["cells"]:
        key = headline_key(cell)
        cell["metrics"] = [one for one in cell["metrics"] if one["key"] in shown]
        cell["comparisons"] = [one for one in cell["comparisons"] if one["key"] == key]
        cell["curves"] = _rounded(cell.get("curves", {}))
    return _without_folders(results, [cell["config"] for cell in results["cells"]])


def _without_folders(results: dict[str, Any], configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The results, whose configurations name no folder of the machine."""
    for config in configs:
        config["out"] = f"runs/{results['name']}"
        config["prepare"]["source"] = None
    encoder = configs[0]["recommender"]["encoder"]
    named = encoder is None or not Path(encoder).is_absolute()
    return results if named else _replaced(results, encoder, Path(encoder).name)


def _rounded(node: Any) -> Any:
    """The same JSON, whose fractions have five digits."""
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_rounded(value) for value in node]
    return float(f"{node:.5g}") if isinstance(node, float) else node


def _replaced(node: Any, old: Any, new: Any) -> Any:
    """The same JSON with another value in place of one, wherever it stands."""
    if isinstance(node, dict):
        return {key: _replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, old, new) for value in node]
    return new if node == old else node


def files(results: dict[str, Any]) -> dict[str, str]:
    """File names of the plots that a study may have, by their names."""
    name = results["name"]
    return {plot: f"{name}{'' if plot == 'study' else f'-{plot}'}.png" for plot in FIGURES}


def page(results: dict[str, Any]) -> str:
    """The page of a published study."""
    return study_page(results, *files(results).values())


def draw(figure: Figure, path: Path) -> None:
    """Write a plot as a PNG of 256 colours, whole or not at all."""
    save(figure, path)
    small = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with written_whole(path) as temporary:
        small.save(temporary, "png", optimize=True)


def publish_gradients(folder: Path) -> None:
    """Write the files of one comparison of gradients."""
    results = without_users(read_json(folder / "gradients.json"))
    place, name = RESULTS / "gradients", results["name"]
    write_json(place / f"{name}.json", results)
    draw(gradient_figure(results), place / f"{name}.png")
    write_text(place / f"{name}.md", gradient_page(results, f"{name}.png"))


def shortened_run(results: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, without folders of the machine, and without users."""
    results["curves"] = _rounded(results["curves"])
    for gate in results["gates"].values():
        for key in ("user_ids", "rows", "weights"):
            gate.pop(key, None)
    return _without_folders(results, [results["config"]])


def run_page(results: dict[str, Any]) -> str:
    """The page of a published run."""
    return render(results, list(run_figures(results)))


def publish_run(results: dict[str, Any]) -> None:
    """Write the files of one run."""
    results = shortened_run(results)
    folder = RESULTS / "experiments" / results["name"]
    write_text(folder / RUN_RESULTS, in_one_line(results))
    for name, figure in run_figures(results).items():
        draw(figure, folder / PLOTS / name)
    write_text(folder / REPORT, run_page(results))


def in_one_line(results: dict[str, Any]) -> str:
    """The content of a published JSON file. NaN is refused, as in a run's own."""
    return json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n"


def publish(place: Path) -> None:
    """Write the files of one study, of its folder or published JSON, of a run, or of gradients."""
    if (place / "gradients.json").exists():
        publish_gradients(place)
        if not (place / RUN_RESULTS).exists():
            return
    results = read_json(place if place.is_file() else place / RUN_RESULTS)
    if "cells" in results:
        publish_study(shortened(results))
    else:
        publish_run(results)


def publish_study(results: dict[str, Any]) -> None:
    """Write the files of one study."""
    write_text(RESULTS / f"{results['name']}.json", in_one_line(results))
    for plot, figure in study_figures(results).items():
        draw(figure, RESULTS / files(results)[plot])
    write_text(RESULTS / f"{results['name']}.md", page(results))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
