"""Stage `report`: writes RUN/results.json, report.md, report.html, summary.txt, predictions, plots.

The stage is cheap and keeps no record: every call writes all files anew from the other stages'.
"""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from recipes.artifacts import write_json, write_text, written_whole
from recipes.evaluation.parts import PREDICTIONS
from recipes.methods.method import Arm
from recipes.report.explorer import explored
from recipes.report.markdown import render
from recipes.report.page import page
from recipes.report.plots import gate_figure, hit_ratio_figure, loss_figure, save
from recipes.report.results import collect
from recipes.report.terminal import summary_text
from recipes.run import Run

RESULTS, REPORT, PAGE, SUMMARY = "results.json", "report.md", "report.html", "summary.txt"
PLOTS = "plots"


def report(run: Run, arms: Sequence[Arm]) -> dict[str, Any]:
    """Write the report of a run.

    Args:
        run: The run, whose other stages are finished.
        arms: The arms to report.

    Returns:
        The content of `results.json`.

    Raises:
        FileNotFoundError: A stage has not been run. Nothing is written in this case.
        ValueError: A stage was run with other settings. Nothing is written in this case.
    """
    results = collect(run, arms)
    folder = run.folder
    plots = _write_plots(run, results)
    write_json(folder / RESULTS, results)
    text = render(results, plots)
    write_text(folder / REPORT, text)
    images = {name: (folder / PLOTS / name).read_bytes() for name in plots}
    write_text(folder / PAGE, page(results["name"], text, images, explored(run, arms)))
    write_text(folder / SUMMARY, summary_text(results, folder / REPORT))
    with written_whole(folder / PREDICTIONS) as temporary:
        shutil.copyfile(folder / "evaluate" / PREDICTIONS, temporary)
    return results


def run_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The plots of a run's results by file name; gates only whose weights of users are there."""
    losses = {name: own["loss"] for name, own in results["curves"].items() if "loss" in own}
    figures = {"hit_ratio.png": hit_ratio_figure(results)}
    if losses:
        figures["loss.png"] = loss_figure(losses, results)
    for name, summary in results["gates"].items():
        if "weights" in summary:
            figures[f"gates-{name}.png"] = gate_figure(name, summary, results)
    return figures


def _write_plots(run: Run, results: Mapping[str, Any]) -> list[str]:
    figures = run_figures(results)
    for old in (run.folder / PLOTS).glob("*.[ps][nv]g"):
        if f"{old.stem}.png" not in figures:  # an earlier report may have had other arms
            old.unlink()
    for name, figure in figures.items():
        path = run.folder / PLOTS / name
        save(figure, path, path.with_suffix(".svg"))
    return list(figures)
