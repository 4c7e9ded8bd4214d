"""The pipeline: prepare -> recommender -> adapt -> evaluate -> report.

    raw files ── prepare ──> interactions, items, examples, candidates
                               │
    train windows ─ recommender ──> user representations, item embeddings   (SASRec)
                               │
    prompts + vectors ── adapt ──> one adapter for each arm and seed        (LLM with LoRA, iLoRA)
                               │
    frozen candidates ─ evaluate ──> predictions, ranks
                               │
                            report ──> results.json, report.md, report.html, plots

A stage reads only the files of earlier stages. It is skipped while those files and its own config
are unchanged.

An arm that is `trained_on` other data has a pipeline of its own on these, up to its adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from recipes.arms import comparison, experiments_elsewhere
from recipes.data import prepare as preparing
from recipes.evaluation import evaluate as evaluating
from recipes.experiment import Experiment
from recipes.failures import concerning
from recipes.jobs import shared_out
from recipes.llm.smollm2 import SMOLLM2, check_smollm2
from recipes.llm.stand_in import STAND_IN, check_stand_in
from recipes.locking import held
from recipes.methods.method import Arm, arm_folder, trained_alone
from recipes.methods.transferred import TRAINED_ON, Transferred
from recipes.methods.tuned import train_arm
from recipes.preflight import preflight
from recipes.ranges import check_ranges
from recipes.recommenders.train import check_fits
from recipes.report.report import SUMMARY, report
from recipes.run import Run
from recipes.scoring.rows import evaluated_rows
from recipes.stages import run_stage

Task = tuple[str, str, int]
"""A training or a prediction: its kind, and the name and seed of a recommender or an arm. The
stand-in has no seed of its own."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of an experiment whose config has been checked."""

    run: Run
    arms: tuple[Arm, ...]
    jobs: int = 1
    """Number of processes that share trainings and predictions."""
    elsewhere: tuple["Pipeline", ...] = ()
    """Pipelines on other data, which train adapters that this one evaluates."""
    place: str | None = None
    """The data, as `trained_on` of another pipeline's arms, which evaluates this one's adapters;
    None for a pipeline that evaluates its own."""

    @classmethod
    def of(cls, experiment: Experiment, shared: Path | None = None, jobs: int = 1) -> "Pipeline":
        """Check the config of every stage before any stage runs.

        A mistake in a late stage's config is thus found before the early stages have done work.

        Args:
            experiment: What to run.
            shared: See `Run`.
            jobs: Number of processes that share trainings and predictions.

        Raises:
            ValueError: A value is impossible; the message names the field and the remedy.
        """
        if jobs < 1:
            raise ValueError(f"jobs={jobs}: choose 1 or more")
        check(experiment)
        compared = comparison(experiment)
        evaluating.check_arms(experiment, compared.arms)
        run = Run(experiment, compared.networks, shared)
        others = []
        for place, one in experiments_elsewhere(experiment, compared.arms).items():
            with concerning(f"{TRAINED_ON}={place!r}"):
                other = replace(cls.of(one, shared, jobs), place=place)
            run.trains_elsewhere(place, other.run)
            others.append(other)
        return cls(run, compared.arms, jobs, tuple(others))

    def prepare(self) -> None:
        """Turn raw files into tables."""
        with held(self.run.folder):
            self._prepare()

    def check(self, tried: set[tuple[str, str]]) -> None:
        """Prepare the tables, and see whether rows and every arm's language model fit them.

        Args:
            tried: Path and precision of language models that were loaded and tried already; this
                run's is added, and not kept in memory.
        """
        self.prepare()
        self._check_rows()
        model = self.run.llm_path, self.run.experiment.adapt.precision
        self._preflight(weights=model not in tried)
        if self.run.release_llm():
            tried.add(model)

    def recommender(self) -> None:
        """Train the recommenders on the train windows: all with their first seed, then the next."""
        with held(self.run.folder):
            self._recommender()

    def adapt(self) -> None:
        """Train one adapter for each arm, trial and seed: all of a seed, then the next seed."""
        with held(self.run.folder):
            self._check_rows()
            self._adapt()

    def evaluate(self) -> None:
        """Predict with every arm, and compute metrics."""
        with held(self.run.folder):
            self._preflight()
            self._evaluate()

    def report(self) -> Mapping[str, Any]:
        """Write the report and print its summary; returns the content of `results.json`."""
        with held(self.run.folder):
            return self._report()

    def run_all(self) -> Mapping[str, Any]:
        """Run every stage in order; returns the content of `results.json`."""
        with held(self.run.folder):
            self._prepare()
            self._check_rows()
            self._preflight()
            self._before_adapters()
            self._adapt()
            self._evaluate()
            return self._report()

    def _in_others(self, do: Callable[["Pipeline"], None]) -> None:
        """Do something in the pipelines on other data; a mistake says which data it concerns."""
        for other in self.elsewhere:
            with concerning(f"{TRAINED_ON}={other.place!r}"):
                do(other)

    def _prepare(self) -> None:
        self._in_others(Pipeline._prepare)
        self.run.prepare()

    def _preflight(self, *, weights: bool = True) -> None:
        """Refuse what would be found out after hours of training, here and elsewhere."""
        self._in_others(lambda other: other._preflight(weights=weights))
        arms = [arm for arm in self.arms if self.place is None or not self._is_trained(arm)]
        preflight(self.run, arms, weights=weights)

    def _check_rows(self) -> None:
        """Refuse settings that leave no rows of these data, before anything is trained."""
        self._in_others(Pipeline._check_rows)
        data = self.run.data
        if self.run.is_evaluated:
            evaluated_rows(data, self.run.experiment.evaluate)
        longest = data.split("train").history_lengths.max()
        for network in self.run.networks.values():
            if network.source is None:  # else nothing is trained
                check_fits(network.config, data)
        for arm in trained_alone(self.arms):
            if isinstance(arm.method, Transferred):
                continue  # its windows are not these
            if arm.settings.get("min_history", 0) > longest:
                raise ValueError(
                    f"{arm.name}: min_history={arm.settings['min_history']} leaves no training "
                    f"window: the longest history has {longest} items"
                )

    def _recommender(self) -> None:
        self._in_others(Pipeline._recommender)
        networks = self.run.networks
        # Sources first, so that a fault of theirs costs no training.
        trainings = sorted(
            self.run.trainings, key=lambda training: networks[training[0]].source is None
        )
        self._all("recommender", trainings)

    def _before_adapters(self) -> None:
        """Train the recommenders and, beside them where there are several jobs, the stand-in."""
        if self.jobs > 1 and self._reads_language_model:
            trainings = [("recommender", name, seed) for name, seed in self.run.trainings]
            self._share_out([("stand-in", STAND_IN, 0), *trainings])
        self._recommender()

    @property
    def _reads_language_model(self) -> bool:
        return any(arm.method.reads_language_model for arm in self.arms)

    def _adapt(self) -> None:
        self._preflight()
        self._in_others(Pipeline._adapt)
        experiment = self.run.experiment
        if self._reads_language_model:
            self.run.make_stand_in()
        tuned = [arm for arm in self.arms if arm.method.trials(arm)]
        for arms in (trained_alone(self.arms), tuned):
            trainings = [
                (arm.name, seed)
                for seed in range(experiment.seeds)
                for arm in arms
                if seed in arm.method.seeds(experiment, arm.settings)
            ]
            self._all("adapt", trainings)

    def _evaluate(self) -> None:
        if self.jobs > 1:
            parts = evaluating.planned_parts(self.run, self.arms)
            self._share_out([("evaluate", part.arm.name, part.seed) for part in parts])
        evaluating.evaluate(self.run, self.arms)

    def _all(self, kind: str, named: Sequence[tuple[str, int]]) -> None:
        """Do tasks of a kind, which do not depend on each other."""
        tasks = [(kind, name, seed) for name, seed in named]
        if self.jobs > 1:
            self._share_out(tasks)
        for task in tasks:
            self.do(task)

    def _share_out(self, tasks: Sequence[Task]) -> None:
        left = [task for task in tasks if not self._is_done(task)]
        if len(left) > 1:
            start = partial(_worker, self.run.experiment, self.run.shared)
            shared_out(start, left, self.jobs, left[-1][0])

    def do(self, task: Task) -> None:
        """Train or predict, unless it is done; the folder's lock is held."""
        kind, name, seed = task
        if kind == "recommender":
            self.run.train_network(name, seed)
        elif kind == "stand-in":
            self.run.make_stand_in()
        elif kind == "adapt":
            self._train(self._arm(name), seed)
        else:
            evaluating.predict(self.run, self._arm(name), seed)

    def _is_done(self, task: Task) -> bool:
        kind, name, seed = task
        try:
            if kind == "recommender":
                self.run.network_record(name, seed)
            elif kind == "stand-in":
                return not self.run.has_stand_in or bool(self.run.llm_content)
            elif kind == "adapt":
                self._arm(name).method.inputs(self.run, self._arm(name), seed)
            else:
                evaluating.predicted(self.run, self._arm(name), seed)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _is_trained(self, arm: Arm) -> bool:
        seeds = arm.method.seeds(self.run.experiment, arm.settings)
        return all(self._is_done(("adapt", arm.name, seed)) for seed in seeds)

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in (*self.arms, *trained_alone(self.arms)) if arm.name == name)

    def _train(self, arm: Arm, seed: int) -> None:
        stage = arm.method.stage(self.run, arm, seed)
        if stage is not None:
            folder = arm_folder(self.run, arm, seed)
            run_stage(stage, folder, lambda place: train_arm(self.run, arm, seed, place))

    def _report(self) -> Mapping[str, Any]:
        results = report(self.run, self.arms)
        print((self.run.folder / SUMMARY).read_text(encoding="utf-8"))
        return results


def _worker(experiment: Experiment, shared: Path | None) -> Callable[[Task], None]:
    """What does a task in a process of its own."""
    return Pipeline.of(experiment, shared).do


def check(experiment: Experiment) -> None:
    """Refuse impossible values of every stage, except of arms, which `comparison` checks.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(experiment)
    preparing.check_config(experiment.prepare)
    evaluating.check_config(experiment.evaluate, experiment.prepare.num_candidates)
    check_stand_in(experiment.adapt.stand_in)
    if experiment.adapt.llm == SMOLLM2:
        check_smollm2()
    _check_out(experiment)
    longest = experiment.prepare.max_history
    for name in ("recommender", "adapt", "evaluate"):
        wanted = getattr(experiment, name).min_history
        if wanted > longest:
            raise ValueError(
                f"{name}.min_history={wanted} leaves no row: a history has at most "
                f"prepare.max_history={longest} items"
            )


def _check_out(experiment: Experiment) -> None:
    """Refuse an empty `out`, which would be the working directory, and one in the language model's
    folder, whose content each run would change.
    """
    name, out = experiment.adapt.llm, experiment.out
    if not out.strip():
        raise ValueError(f"out={out!r} is empty: name a folder, or `.` for this one")
    model = Path(name)
    inside = Path(out).resolve().is_relative_to(model.resolve())
    if name not in (STAND_IN, SMOLLM2) and inside and model.is_dir():
        raise ValueError(
            f"out={out!r} lies in the folder of adapt.llm={name!r}, whose content every run would "
            "change: choose another --out"
        )
