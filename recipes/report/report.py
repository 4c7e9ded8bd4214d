"""The stages' folders -> RUN/results.json, report.md, summary.txt, predictions.parquet, plots.

Cheap, so it is never resumed: every call writes all files anew, from what the stages left.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.artifacts import (
    Record,
    fingerprint,
    installed_versions,
    read_json,
    read_record,
    sha256,
    write_json,
    write_text,
    written_whole,
)
from recipes.evaluation.parts import PREDICTIONS
from recipes.experiment import Experiment
from recipes.report.markdown import render
from recipes.report.plots import gate_figure, hit_ratio_figure, loss_figure, save
from recipes.report.results import collect
from recipes.report.terminal import summary_text

RESULTS, REPORT, SUMMARY, PLOTS = "results.json", "report.md", "summary.txt", "plots"


def report(experiment: Experiment, run: Path) -> Record:
    """Write the report of a run.

    Args:
        experiment: The run's.
        run: Its directory, with all stages finished.

    Raises:
        FileNotFoundError: A stage has not been run; nothing is written then.
    """
    start = time.monotonic()
    evaluated = read_record(run / "evaluate", "evaluate")
    results = collect(experiment, run)
    plots = _write_plots(experiment, run, results)
    write_json(run / RESULTS, results)
    write_text(run / REPORT, render(results, plots))
    write_text(run / SUMMARY, summary_text(results, run / REPORT))
    with written_whole(run / PREDICTIONS) as temporary:
        shutil.copyfile(run / "evaluate" / PREDICTIONS, temporary)
    names = [RESULTS, REPORT, SUMMARY, PREDICTIONS, *(f"{PLOTS}/{name}" for name in plots)]
    inputs = {"evaluate": evaluated.fingerprint}
    return Record(
        stage="report",
        fingerprint=fingerprint("report", asdict(experiment), inputs),
        config=asdict(experiment),
        inputs=inputs,
        files={name: sha256(run / name) for name in names},
        versions=installed_versions(),
        seconds=round(time.monotonic() - start, 3),
    )


def _write_plots(experiment: Experiment, run: Path, results: Mapping[str, Any]) -> list[str]:
    curves = {
        method: [
            read_json(run / "adapt" / f"{method}-seed{seed}" / "loss.json")
            for seed in range(experiment.seeds)
        ]
        for method in experiment.adapt.methods
    }
    figures = {"loss.png": loss_figure(curves), "hit_ratio.png": hit_ratio_figure(results)}
    if "ilora" in results["gates"]:
        figures["gates.png"] = gate_figure("ilora", results["gates"]["ilora"])
    else:  # an earlier report may have had a gate
        (run / PLOTS / "gates.png").unlink(missing_ok=True)
    for name, figure in figures.items():
        save(figure, run / PLOTS / name)
    return list(figures)
