"""An adapter whose settings are chosen on validation: the best of some trials.

An arm with `tune` names values of its method's settings, all combinations of which are trials:

    {method: lora, tune: {learning_rate: [1.0e-3, 3.0e-3], rank: [8, 16]}}

Every trial is trained as an arm of its own would be. The arm is the trial with the highest
HitRatio@1 on `adapt.validate_rows` rows of validation, the first of equals; every seed chooses for
itself. A trial whose training diverges is not chosen, and counts as one. So a plain LoRA has as
many trials as an adapter with a gate, if their grids are as large.
"""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from recipes.artifacts import read_json, write_json
from recipes.experiment import EvaluateConfig, Experiment
from recipes.llm.adapted import adapted_model
from recipes.llm.divergence import DivergenceError
from recipes.llm.train_adapter import LOSS, PARAMETERS, TRAINING, VALIDATION
from recipes.methods.adapter import AdapterMethod
from recipes.methods.ilora import CLUSTERS_FILE
from recipes.methods.method import Arm, Method, arm_folder, folder_name, shown
from recipes.methods.validating import hit_ratio_on_validation
from recipes.records import Record, Stage, required_record
from recipes.run import Run
from recipes.scoring.predictions import Predictions, Scorer
from recipes.scoring.rows import EvaluatedRows

TUNE = "tune"
"""Key of an arm that names the values to try."""
TUNING = "tuning.json"
"""Of a tuned arm and seed: `trials`, each with its `settings` and its figure on `validation` (null
if it has diverged), and `chosen`, the place of the best among them."""
DIVERGED = "diverged.json"
"""What a trial leaves whose training has diverged: `why`."""
UNLIKE_ROWS = ("min_history",)
"""Settings on which it depends which rows of validation are ranked."""


class Tuned(Method):
    """The best of some trials of an adapter.

    Args:
        inner: The adapter's method.
        grid: Setting -> the values to try.

    Raises:
        ValueError: The method is no adapter, or the grid is not one.
    """

    is_adapter = True
    reads_language_model = True
    reads_candidates = True

    def __init__(self, inner: Method, grid: Any) -> None:
        if not isinstance(inner, AdapterMethod):
            raise ValueError(
                f"method {inner.name}: {TUNE} is for adapters of a language model; compare the "
                "settings of a recommender as arms, with evaluate.split val"
            )
        self.inner = inner
        self.choices = _choices(f"method {inner.name}", grid)
        count = len(self.choices)
        self.name = f"{inner.name}-tuned"
        self.summary = f"{inner.summary}; the best of {count} settings on validation"
        self.about = replace(
            inner.about,
            title=f"{inner.about.title}, best of {count}",
            meaning=f"{inner.about.meaning}; of {count} settings the best on validation rows",
        )
        self.version = inner.version

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of all trials; where these differ, the list of their values."""
        _check_grid(f"method {self.inner.name}", given, self.choices[0])
        trials = [self.inner.configure(experiment, {**given, **one}) for one in self.choices]
        for place, one in enumerate(trials):
            if one in trials[:place]:
                raise ValueError(
                    f"method {self.inner.name}: {TUNE} has the same settings twice, of which one "
                    f"is {self.choices[place]}: leave one out"
                )
        return {
            **{name: _common([one[name] for one in trials]) for name in trials[0]},
            "num_trials": len(trials),
            "trials": trials,
            "validate_rows": experiment.adapt.validate_rows,
            "length_normalised": experiment.evaluate.length_normalised,
        }

    def trials(self, arm: Arm) -> tuple[Arm, ...]:
        """An arm for each trial, named after the tuned one and its choices."""
        found = []
        for chosen, settings in zip(self.choices, arm.settings["trials"], strict=True):
            words = (f"{name}={shown(value)}" for name, value in chosen.items())
            name = folder_name(",".join([arm.name, *words]))
            found.append(Arm(name, self.inner, {**arm.given, **chosen}, settings, is_trial=True))
        return tuple(found)

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """Those of the adapter."""
        return self.inner.seeds(experiment, settings["trials"][0])

    def sources(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The recommenders whose vectors any trial reads."""
        found = (source for one in settings["trials"] for source in self.inner.sources(one))
        return tuple(dict.fromkeys(found))

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse a trial that does not fit the language model, or cannot be measured."""
        for trial in self.trials(arm):
            self.inner.check(run, trial)
            self.inner.check_measured(run, trial)

    def stage(self, run: Run, arm: Arm, seed: int) -> Stage:
        """The choice among the trained trials.

        Raises:
            FileNotFoundError: A trial has not been trained.
            ValueError: A trial was trained with other settings.
        """
        inputs = {trial.name: self._record(run, trial, seed).content for trial in self.trials(arm)}
        settings = {**arm.settings, "method": self.name, "seed": seed}
        return Stage(f"adapt {arm.name} seed {seed}", settings, inputs, self.version)

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Measure every trial, and write `tuning.json` and the curves and sizes of the best.

        Raises:
            DivergenceError: All trials have diverged.
        """
        figures = [self._measured(run, trial, seed) for trial in self.trials(arm)]
        finite = [figure for figure in figures if figure is not None]
        if not finite:
            raise DivergenceError(
                f"all {len(figures)} trials of {arm.name} seed {seed} have diverged: try lower "
                f"values of {TUNE}.learning_rate"
            )
        chosen = figures.index(max(finite))
        copy_descriptions(arm_folder(run, self.trials(arm)[chosen], seed), folder)
        tried = zip(self.choices, figures, strict=True)
        trials = [{"settings": one, "validation": figure} for one, figure in tried]
        write_json(folder / TUNING, {"trials": trials, "chosen": chosen})

    def _measured(self, run: Run, trial: Arm, seed: int) -> float | None:
        """HitRatio@1 of a trained trial on validation; None if it has diverged."""
        place = arm_folder(run, trial, seed)
        if (place / DIVERGED).exists():
            return None
        plan = self.inner.plan(run, trial, seed)
        vectors = self.inner.vectors(run, trial, seed, place)
        measure = hit_ratio_on_validation(run, plan, vectors)
        with adapted_model(plan, run.llm, run.prompts, vectors, place) as adapted:
            try:
                return measure(adapted.hybrid)
            except DivergenceError:
                return None

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows and candidates, the choice, and the chosen adapter."""
        stage = self.stage(run, arm, seed)
        record = required_record(stage, arm_folder(run, arm, seed), "adapt")
        chosen = self._record(run, self.chosen(run, arm, seed), seed)
        found = {"tuning": record.content, "adapter": chosen.content}
        return super().inputs(run, arm, seed) | found

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """The predictions of the chosen trial."""
        return self.inner.predict(run, self.chosen(run, arm, seed), seed, rows, config)

    def scorer(self, run: Run, arm: Arm, seed: int) -> AbstractContextManager[Scorer]:
        """The scores of the chosen trial."""
        return self.inner.scorer(run, self.chosen(run, arm, seed), seed)

    def chosen(self, run: Run, arm: Arm, seed: int) -> Arm:
        """The trial that was chosen with a seed."""
        return self.trials(arm)[read_json(arm_folder(run, arm, seed) / TUNING)["chosen"]]

    def _record(self, run: Run, trial: Arm, seed: int) -> Record:
        stage = self.inner.stage(run, trial, seed)
        return required_record(stage, arm_folder(run, trial, seed), "adapt")


def train_arm(run: Run, arm: Arm, seed: int, folder: Path) -> None:
    """Train an arm into a folder. A trial that diverges leaves `diverged.json` alone."""
    try:
        arm.method.train(run, arm, seed, folder)
    except DivergenceError as error:
        if not arm.is_trial:
            raise
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(f"[adapt {arm.name} seed {seed}] {error}", flush=True)
        write_json(folder / DIVERGED, {"why": str(error)})


def _check_grid(owner: str, given: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
    """Refuse to try what the arm sets, or to measure trials on unlike rows (ValueError)."""
    for name in choice:
        if name in given:
            raise ValueError(
                f"{owner}: the arm sets {name}={given[name]!r}, and {TUNE} tries values of it: "
                "leave one out"
            )
        if name in UNLIKE_ROWS:
            raise ValueError(
                f"{owner}: {TUNE}.{name} would rank other rows of validation in each trial: make "
                "them arms instead"
            )


def copy_descriptions(adapter: Path, folder: Path) -> None:
    """Copy what tells of an adapter's training, as far as it is there, and no weights."""
    for name in (CLUSTERS_FILE, LOSS, PARAMETERS, TRAINING, VALIDATION):
        if (adapter / name).exists():
            shutil.copyfile(adapter / name, folder / name)


def _choices(owner: str, grid: Any) -> list[dict[str, Any]]:
    """All combinations of a grid's values, the last setting's values changing first."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(
            f"{owner}: {TUNE}={grid!r} must name settings and the values to try, such as "
            "{learning_rate: [1.0e-3, 3.0e-3], rank: [8, 16]}"
        )
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{owner}: {TUNE}.{name}={values!r} must be a list of values to try")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _common(values: list[Any]) -> Any:
    """The one value of all trials, or the list of their different values."""
    found = [one for place, one in enumerate(values) if one not in values[:place]]
    return found[0] if len(found) == 1 else found
