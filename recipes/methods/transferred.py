"""An adapter that is trained on other data than those it is evaluated on.

An arm with `trained_on` names a dataset. Its adapter is trained there as an arm of the same
experiment on that dataset would be, and evaluated here, on this experiment's rows and candidates:

    {method: ilora, trained_on: movielens}
    {method: ilora, trained_on: {dataset: steam, source: FOLDER}}

The language model reads titles, which mean something in every dataset. Vectors need not: what
enters the trained gate and projector are the vectors of the arm's `recommender` for these data.
Those of a text encoder (`recommender: text`) are a function of titles, the same in all datasets,
and are standardised by the statistics of the data that the adapter was trained on. Those of a
network that was trained on these data, as the paper's SASRec, have coordinates of their own, which
the gate has never seen; they are standardised by their own statistics.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.datasets import DATASETS
from recipes.experiment import EvaluateConfig, Experiment, PrepareConfig
from recipes.failures import concerning
from recipes.llm.adapted import adapted_model
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.stand_in import STAND_IN
from recipes.llm.train_adapter import NORMALISER
from recipes.methods.adapter import SOURCE, AdapterMethod, beam_scorer
from recipes.methods.fitting import check_answers, check_room, longest_evaluated
from recipes.methods.method import Arm, Method, arm_folder, default_name, folder_name
from recipes.methods.settings import refuse_unknown
from recipes.methods.tuned import copy_descriptions
from recipes.recommenders.normaliser import Normaliser
from recipes.recommenders.vectors import Vectors
from recipes.records import Record, Stage, required_record
from recipes.run import Run
from recipes.scoring.predictions import Predictions, Scorer, llm_predictions
from recipes.scoring.rows import EvaluatedRows

TRAINED_ON = "trained_on"
"""Key of an arm that names the data on which its adapter is trained."""
SOURCE_FIELD = "source"
FIELDS = ("dataset", SOURCE_FIELD, "protocol")
"""Fields of the section `prepare` that it may give; all others are the experiment's."""


class Transferred(Method):
    """An adapter, trained elsewhere.

    Args:
        inner: The adapter's method.
        where: The dataset, or some of `FIELDS` with their values.

    Raises:
        ValueError: The method is no adapter that could be moved, or `where` names no dataset.
    """

    is_adapter = True
    reads_language_model = True
    reads_candidates = True

    def __init__(self, inner: Method, where: Any) -> None:
        if not isinstance(inner, AdapterMethod) or type(inner).vectors is not AdapterMethod.vectors:
            raise ValueError(
                f"method {inner.name}: {TRAINED_ON} is for adapters of a language model that read "
                "a user's own vector or none, such as lora and ilora: leave it out"
            )
        self.inner = inner
        self.where = _checked(f"method {inner.name}", where)
        self.place = _place(self.where)
        """The data in words, which name a folder and the run that `Run.elsewhere` has of them."""
        self.name = f"{inner.name}-transferred"
        self.summary = f"{inner.summary}; trained on other data"
        self.about = replace(
            inner.about,
            meaning=f"{inner.about.meaning}; trained on {self.place}, and on no other data",
        )
        self.version = inner.version

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The adapter's settings, and the data that it is trained on.

        Raises:
            ValueError: The language model is a stand-in, or a setting of the adapter's is wrong.
        """
        if experiment.adapt.llm == STAND_IN:
            raise ValueError(
                f"method {self.inner.name}: {TRAINED_ON}={self.place!r}, but the stand-in is "
                "trained on the titles of one dataset and knows no others: set adapt.llm to a real "
                "language model, such as smollm2"
            )
        return {**self.inner.configure(experiment, _without(given)), TRAINED_ON: self.place}

    def trained(self, arm: Arm) -> Arm:
        """The arm of the other run that trains the adapter."""
        given = _without(arm.given)
        name = folder_name(default_name(self.inner.name, given))
        return Arm(name, self.inner, given, _without(arm.settings))

    def prepared(self, config: PrepareConfig) -> PrepareConfig:
        """The section `prepare` of the other data; made-up data have no raw files."""
        made_up = {SOURCE_FIELD: None} if DATASETS[self.where["dataset"]].is_made_up else {}
        return replace(config, **{**made_up, **self.where})

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """Those of the adapter."""
        return self.inner.seeds(experiment, settings)

    def sources(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The recommender whose vectors for these data the adapter reads, if any."""
        return self.inner.sources(settings)

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse a language model whose tokens or positions do not fit the evaluated rows."""
        settings = self.inner.settings_of(self.trained(arm))
        check_answers(run)
        layout = self.inner.layout(settings)
        prompts = run.outlined_prompts.prompts(run.experiment.evaluate.split, *layout)
        check_room(run, longest_evaluated(run, prompts.input_ids), settings.prompt_history)

    def training(self, run: Run, arm: Arm, seed: int) -> Record:
        """The record of the adapter's training.

        Raises:
            FileNotFoundError: It has not been trained.
            ValueError: It was trained with other settings.
        """
        stage = self.inner.stage(run.elsewhere[self.place], self.trained(arm), seed)
        return required_record(stage, self._folder(run, arm, seed), "adapt")

    def stage(self, run: Run, arm: Arm, seed: int) -> Stage:
        """The choice of the trained adapter; raises what `training` raises."""
        settings = {**arm.settings, "method": self.name, "seed": seed}
        inputs = {"adapter": self.training(run, arm, seed).content}
        return Stage(f"adapt {arm.name} seed {seed}", settings, inputs, self.version)

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Copy what describes the training: curves, sizes."""
        copy_descriptions(self._folder(run, arm, seed), folder)

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows, candidates and titles, the adapter, and the vectors for these data."""
        stage = self.stage(run, arm, seed)
        record = required_record(stage, arm_folder(run, arm, seed), "adapt")
        found = {"adapter": record.content, "items.parquet": run.prepared.files["items.parquet"]}
        if self.inner.reads_vectors:
            found[SOURCE] = run.network_record(arm.settings[SOURCE]).content
        return super().inputs(run, arm, seed) | found

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Log-probabilities of the candidates, answers, and the gate's weights if any."""
        plan, vectors = self._plan(run, arm, seed), self._vectors(run, arm, seed)
        folder = self._folder(run, arm, seed)
        with adapted_model(plan, run.llm, run.prompts, vectors, folder) as adapted:
            return llm_predictions(adapted, plan.label, rows, config)

    def scorer(self, run: Run, arm: Arm, seed: int) -> AbstractContextManager[Scorer]:
        """The titles that the adapted model writes by beams, of all items."""
        plan, vectors = self._plan(run, arm, seed), self._vectors(run, arm, seed)
        return beam_scorer(run, plan, vectors, self._folder(run, arm, seed))

    def _folder(self, run: Run, arm: Arm, seed: int) -> Path:
        """Folder of the adapter."""
        return arm_folder(run.elsewhere[self.place], self.trained(arm), seed)

    def _plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        plan = self.inner.plan(run.elsewhere[self.place], self.trained(arm), seed)
        return replace(plan, label=f"{arm.name} seed {seed}")

    def _vectors(self, run: Run, arm: Arm, seed: int) -> Vectors | None:
        """The vectors for these data; see the module's docstring."""
        if not self.inner.reads_vectors:
            return None
        name = arm.settings[SOURCE]
        if not run.networks[name].is_common:
            return run.vectors(name)
        return run.vectors(name, Normaliser.load(self._folder(run, arm, seed) / NORMALISER))


def _checked(owner: str, where: Any) -> dict[str, Any]:
    """The fields that `where` gives; a word is a dataset's name.

    Raises:
        ValueError: It is neither a dataset's name nor a block with one.
    """
    given = {"dataset": where} if isinstance(where, str) else where
    if not isinstance(given, Mapping) or not isinstance(given.get("dataset"), str):
        raise ValueError(
            f"{owner}: {TRAINED_ON}={where!r} must be a dataset's name, or a block such as "
            "{dataset: movielens, source: FOLDER}"
        )
    refuse_unknown(f"{owner}: {TRAINED_ON}", given, FIELDS)
    for name, value in given.items():
        if not (isinstance(value, str) or (name == "source" and value is None)):
            raise ValueError(f"{owner}: {TRAINED_ON}.{name}={value!r} must be a word")
    with concerning(f"{owner}: {TRAINED_ON}"):
        _ = DATASETS[given["dataset"]]  # refuses an unknown name
    return dict(given)


def _place(where: Mapping[str, Any]) -> str:
    """The data in words: dataset, protocol, and the name of the folder or file, without its path.

    Where files lie makes no other data of them.
    """
    words = {name: where[name] for name in FIELDS if where.get(name) is not None}
    if SOURCE_FIELD in words:
        words[SOURCE_FIELD] = Path(words[SOURCE_FIELD]).absolute().name
    return ",".join([words.pop("dataset"), *(f"{name}={word}" for name, word in words.items())])


def _without(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != TRAINED_ON}
