"""The parts of an evaluation: one for each arm and seed, each a stage of its own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from recipes.artifacts import write_json, write_table, write_tensors
from recipes.evaluation.catalogue import catalogue_places
from recipes.evaluation.metrics import Places, places_or_last
from recipes.evaluation.named import named_scores
from recipes.evaluation.table import predictions_table
from recipes.experiment import EvaluateConfig
from recipes.methods.method import Arm, trained_name
from recipes.records import Record, Stage, required_record
from recipes.run import Run
from recipes.scoring.masking import Masked
from recipes.scoring.rows import EvaluatedRows
from recipes.stages import run_stage

PREDICTIONS, GATE_WEIGHTS = "predictions.parquet", "gates.safetensors"
MODULATION, ORDER = "modulation.json", "order.json"
SUMMARY_FIELDS = ("ks", "average", "bootstrap_samples", "confidence", "seed")
"""Fields that predictions do not depend on: changing them does not run a model again."""
VERSION = 4
"""Version of this stage, see `Record`. Raise it also when answers end or are matched otherwise.
Since 4 eos ends an answer under a chat template, too, and titles may differ in case alone."""


@dataclass(frozen=True)
class Part:
    """Predictions of one arm and seed."""

    arm: Arm
    seed: int
    stage: Stage
    folder: Path

    @property
    def name(self) -> str:
        """Name of the part, such as `ilora-seed0`."""
        return trained_name(self.arm, self.seed)


def planned_parts(run: Run, arms: Sequence[Arm]) -> list[Part]:
    """All parts of an evaluation, finished or not.

    Raises:
        FileNotFoundError: A stage that a part reads has not been run.
        ValueError: A stage that a part reads was run with other settings.
    """
    found = []
    for arm in arms:
        if arm.method.is_random_order:
            continue
        for seed in arm.method.seeds(run.experiment, arm.settings):
            found.append(_part(run, arm, seed))
    return found


def is_finished(run: Run, arm: Arm) -> bool:
    """Whether nothing is left to train or to predict for an arm."""
    try:
        for part in planned_parts(run, [arm]):
            required_record(part.stage, part.folder, "evaluate")
    except (FileNotFoundError, ValueError):
        return False
    return True


def _part(run: Run, arm: Arm, seed: int) -> Part:
    config = asdict(run.experiment.evaluate)
    settings = {name: value for name, value in config.items() if name not in SUMMARY_FIELDS}
    inputs = arm.method.inputs(run, arm, seed)
    key = [settings, inputs]
    settings |= {"method": arm.method.name, "settings": dict(arm.settings), "seed": seed}
    name = trained_name(arm, seed)
    version = 100 * VERSION + arm.method.version
    stage = Stage(f"evaluate {arm.name} seed {seed}", settings, inputs, version)
    return Part(arm, seed, stage, run.place(f"evaluate/parts/{name}", key))


def predict_part(
    part: Part, run: Run, rows: EvaluatedRows, masked: Masked, config: EvaluateConfig
) -> Record:
    """Predict a part, unless it is finished already; returns its record."""
    arm, seed, titles = part.arm, part.seed, run.data.titles

    def work(place: Path) -> None:
        if rows.whole_catalogue:
            with arm.method.scorer(run, arm, seed) as scorer:
                places = catalogue_places(scorer, rows, masked, config)
            _refuse_all_lost(part, places)
            table = predictions_table(arm.name, seed, rows, places, titles)
        else:
            found = arm.method.predict(run, arm, seed, rows, config)
            scores = named_scores(found, rows) if found.scores is None else found.scores
            places, found = places_or_last(scores, rows.target_index), replace(found, scores=scores)
            _refuse_all_lost(part, places)
            table = predictions_table(arm.name, seed, rows, places, titles, found)
            if found.gates is not None:
                write_tensors(place / GATE_WEIGHTS, {"weights": found.gates})
            if found.modulations:
                write_json(place / MODULATION, found.modulations)
            if (order := found.order) is not None:
                columns = {name: own for name, own in vars(order).items() if own is not None}
                write_json(place / ORDER, {name: own.tolist() for name, own in columns.items()})
        write_table(place / PREDICTIONS, table)

    return run_stage(part.stage, part.folder, work)


def _refuse_all_lost(part: Part, places: Places) -> None:
    """Refuse a part in which no row has a place: a few lost rows are misses, all are a fault."""
    if places.lost is not None and places.lost.all():
        raise ValueError(
            f"{part.name}: the scores of every row hold a NaN: check the vectors or the model "
            "that they come from, and train it again"
        )


def part_record(part: Part) -> Record:
    """The record of a finished part.

    Raises:
        FileNotFoundError: The part has not been predicted.
        ValueError: It was predicted with other settings, or its files have changed.
    """
    return required_record(part.stage, part.folder, "evaluate")
