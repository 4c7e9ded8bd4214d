"""A study: one experiment in several settings, reported in one table.

A study's YAML names a `base` experiment, fields that replace its own, the `arms` to compare, and
under `vary` some fields with the values to try. All combinations of these values are run:

    base: demo
    arms: [{method: lora}, {method: ilora, num_experts: 8}]
    vary: {prepare.num_candidates: [20, 30]}

`columns` names the metrics of the table, and `published` figures to hold it against
(`published.py`). `rivals` names arms that every other adapter is compared with, `notes` says how to
read the page, and `panels` is a setting by which the figure of curves is divided. `along` names
what runs along the columns of a further table and the axis of the plot, as in the paper's. `small`
holds fields that replace the study's own under `--small`, which runs and reports as NAME-small.
`jobs` is the number of processes that share trainings and predictions; `--jobs` goes before it.

DIR/stages/    stages, which runs share where their settings agree
DIR/cells/     one run for each combination of the varied values: its evaluation and report
DIR/results.json, and the page study.md, which study.html holds with its plots. Plots are PNG and
SVG files: study, curves if adapters were trained, and gates if some mixed experts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

from recipes.arms import comparison
from recipes.artifacts import write_json, write_text
from recipes.evaluation.outcomes import metrics_for
from recipes.evaluation.protocol import Protocol
from recipes.experiment import Experiment
from recipes.experiment_files import (
    EXPERIMENTS,
    STUDIES,
    experiment_from,
    merged,
    nested,
    yaml_fields,
    yaml_file,
)
from recipes.locking import held
from recipes.methods.method import folder_name, shown
from recipes.pipeline import Pipeline
from recipes.published import Published, all_published
from recipes.report.page import page
from recipes.report.plots import save
from recipes.report.report import RESULTS
from recipes.report.study import FIGURES, study_figures, study_page, study_results

PAGE, HTML = "study.md", "study.html"
NOT_VARIED = dict.fromkeys(("arms", "adapt.methods"), "list all arms to compare under `arms`")
NOT_VARIED |= dict.fromkeys(("name", "out"), "this is the study's own, give it once")
"""Fields that `vary` cannot hold, and what to do instead."""


@dataclass(frozen=True)
class Cell:
    """One combination of the varied values."""

    varied: Mapping[str, Any]
    """The varied fields, such as `prepare.num_candidates`, and their values in this cell."""
    experiment: Experiment

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        values = (f"{field}={shown(value)}" for field, value in self.varied.items())
        return folder_name(",".join(values), distinct=True) or "all"


@dataclass(frozen=True)
class Study:
    """A study, as read from its YAML file."""

    name: str
    out: Path
    cells: tuple[Cell, ...]
    columns: tuple[str, ...]
    """Keys of the metrics in the table; empty for the main ones."""
    published: tuple[Published, ...]
    """Published figures to hold the table against."""
    along: str | None = None
    """The field or setting that runs along the columns of the layout and the axis of the plot."""
    rivals: tuple[str, ...] = ()
    """Names of arms that every other adapter is compared with."""
    panels: str | None = None
    """A setting of arms by which the figure of curves is divided."""
    notes: tuple[str, ...] = ()
    """How to read the page, in Markdown."""
    jobs: int = 1
    """Number of processes that share trainings and predictions."""


def read_study(
    name: str, out: str | None, overrides: Sequence[str], *, small: bool = False
) -> Study:
    """Read a study's YAML.

    Args:
        name: Name of a shipped study, or path of a YAML file.
        out: The study's folder; None stands for `runs/STUDY`.
        overrides: Command-line overrides of fields, which apply to all cells.
        small: Whether the fields of its block `small` replace its own.

    Raises:
        ValueError: There is no such study, a field is unknown, or a value is impossible.
    """
    path = yaml_file(STUDIES, name, "study")
    own = _sized(path, yaml_fields(path), small)
    if not isinstance(own.get("base"), str):
        raise ValueError(f"{path} names no experiment: write `base: demo`")
    base = yaml_fields(yaml_file(EXPERIMENTS, own.pop("base"), "experiment"))
    vary, title = own.pop("vary", {}), own.get("name") or path.stem
    columns, published = own.pop("columns", []), own.pop("published", None)
    jobs = own.pop("jobs", 1)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"{path}: jobs={jobs!r} must be 1 or more")
    rivals, panels, notes = own.pop("rivals", []), own.pop("panels", None), own.pop("notes", [])
    along = own.pop("along", None)
    _check_words(path, rivals=rivals, notes=notes, panels=[] if panels is None else [panels])
    _check_vary(path, vary)
    folder = Path(out or own.get("out") or f"runs/{title}")
    cells: list[Cell] = []
    for values in product(*vary.values()):
        varied = dict(zip(vary, values, strict=True))
        fields = merged(base, {**own, "name": title})
        for field, value in varied.items():
            fields = merged(fields, nested(field, value))
        cell = Cell(varied, experiment_from(fields, overrides))
        if overrides:
            _refuse_overridden(cell, experiment_from(fields, []))
        place = str(folder / "cells" / cell.name)
        cells.append(replace(cell, experiment=replace(cell.experiment, out=place)))
    _refuse_twins(path, cells)
    metrics = _metrics(cells)
    _check_columns(path, columns, metrics)
    compared = comparison(cells[0].experiment).arms
    arms = [arm.name for arm in compared]
    varied = [cell.varied for cell in cells]
    found = all_published(published, str(path), varied, arms, metrics)
    _check_along(path, along, {*vary, *(key for arm in compared for key in arm.given)})
    for rival in rivals:
        if rival not in arms:
            raise ValueError(f"{path}: rivals: {rival!r} is no arm; there are {', '.join(arms)}")
    return Study(
        title,
        folder,
        tuple(cells),
        tuple(columns),
        found,
        along=along,
        rivals=tuple(rivals),
        panels=panels,
        notes=tuple(notes),
        jobs=jobs,
    )


def _sized(path: Path, own: dict[str, Any], small: bool) -> dict[str, Any]:
    """The fields of the study, or of its small form.

    Raises:
        ValueError: It has no small form, or that is no block of fields.
    """
    own = dict(own)
    less = own.pop("small", None)
    if not small and less is None:
        return own
    if less is None:
        raise ValueError(
            f"{path} has no small form: leave --small out, or write a block `small` with the "
            "fields that replace the study's own"
        )
    if not isinstance(less, dict):
        raise ValueError(f"{path}: small={less!r} must be a block of fields with values")
    if not small:
        return own
    return merged({**own, "name": f"{own.get('name') or path.stem}-small"}, less)


def _check_words(path: Path, **lists: Any) -> None:
    for name, words in lists.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path}: {name} must be words, not {words!r}")


def _check_along(path: Path, along: Any, known: Collection[str]) -> None:
    if along is not None and (not isinstance(along, str) or along not in known):
        raise ValueError(
            f"{path}: along={along!r} does not differ between rows: choose a field of `vary` or a "
            f"setting of arms, from {', '.join(sorted(known)) or 'none'}"
        )


def _check_vary(path: Path, vary: Any) -> None:
    if not isinstance(vary, dict) or not all(isinstance(field, str) for field in vary):
        raise ValueError(f"{path}: vary must name fields and the values they take, not {vary!r}")
    for field, values in vary.items():
        if field in NOT_VARIED:
            raise ValueError(f"{path}: vary.{field}: {NOT_VARIED[field]}")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: vary.{field} must be a list of values, not {values!r}")


def _metrics(cells: Sequence[Cell]) -> list[str]:
    """Keys of the metrics that any cell measures."""
    protocols = [
        Protocol(cell.experiment.evaluate, cell.experiment.prepare.num_candidates) for cell in cells
    ]
    return list(dict.fromkeys(one.key for protocol in protocols for one in metrics_for(protocol)))


def _check_columns(path: Path, columns: Any, known: Sequence[str]) -> None:
    if (
        not isinstance(columns, list)
        or not all(column in known for column in columns)
        or len(set(columns)) < len(columns)
    ):
        raise ValueError(
            f"{path}: columns={columns!r} must be a list, without repeats, from {', '.join(known)}"
        )


def _refuse_overridden(cell: Cell, asked: Experiment) -> None:
    """Refuse command-line fields that replace a varied one: the table would not say so."""
    for field in cell.varied:
        given, wanted = (attrgetter(field)(one) for one in (cell.experiment, asked))
        if given != wanted:
            raise ValueError(
                f"{field}={given!r} is given on the command line, but the study varies it: leave "
                "one out"
            )


def _refuse_twins(path: Path, cells: Sequence[Cell]) -> None:
    for place, cell in enumerate(cells):
        for other in cells[:place]:
            if replace(cell.experiment, out="") == replace(other.experiment, out=""):
                raise ValueError(f"{path}: vary has {dict(cell.varied)} twice: leave one out")


def run_study(study: Study) -> Mapping[str, Any]:
    """Run every cell and report all of them in one table.

    Finished stages are not run again, so a killed study resumes where it stopped. Cells share the
    stages whose settings are the same.

    Returns:
        The content of `DIR/results.json`.

    Raises:
        ValueError: A field of some cell has an impossible value, or does not fit the data or the
            language model, or another command writes into the study's folder. Nothing has been
            trained then.
    """
    stages = study.out / "stages"
    pipelines = [Pipeline.of(cell.experiment, stages, study.jobs) for cell in study.cells]
    with held(study.out):
        tried: set[tuple[str, str]] = set()
        for pipeline in pipelines:
            pipeline.check(tried)
        return _run_cells(study, pipelines)


def _run_cells(study: Study, pipelines: Sequence[Pipeline]) -> Mapping[str, Any]:
    found = []
    for number, (cell, pipeline) in enumerate(zip(study.cells, pipelines, strict=True), 1):
        print(f"[study {study.name}] {number} of {len(study.cells)}: {cell.name}", flush=True)
        found.append(pipeline.run_all())
    varied = [cell.varied for cell in study.cells]
    results = study_results(
        study.name,
        varied,
        found,
        study.columns,
        study.published,
        along=study.along,
        rivals=study.rivals,
        panels=study.panels,
        notes=study.notes,
    )
    write_json(study.out / RESULTS, results)
    print(write_study(results, study.out))
    print(f"page: {study.out / PAGE}")
    return results


def write_study(results: Mapping[str, Any], folder: Path) -> str:
    """Write plots and pages of a study; returns the page in Markdown."""
    drawn = study_figures(results)
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png", folder / f"{name}.svg")
    text = study_page(results, *(f"{name}.png" for name in FIGURES))
    write_text(folder / PAGE, text)
    images = {f"{name}.png": (folder / f"{name}.png").read_bytes() for name in drawn}
    write_text(folder / HTML, page(f"Study: {results['name']}", text, images, None))
    return text
