"""The whole story: prepare -> recommender -> adapt -> evaluate -> report.

    raw files ── prepare ──> interactions, items, examples, candidates
                               │
    train windows ─ recommender ──> user representations, item embeddings   (SASRec)
                               │
    prompts + vectors ── adapt ──> one adapter for each arm and seed        (LLM with LoRA, iLoRA)
                               │
    frozen candidates ─ evaluate ──> predictions, ranks
                               │
                            report ──> results.json, report.md, plots

Each stage reads earlier stages' files only, and is skipped when they and its config are unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.arms import comparison
from recipes.data import prepare as preparing
from recipes.evaluation import evaluate as evaluating
from recipes.experiment import Experiment
from recipes.methods.method import Arm, arm_folder
from recipes.records import run_stage
from recipes.report.report import SUMMARY, report
from recipes.run import Run


@dataclass(frozen=True)
class Pipeline:
    """An experiment that has been checked, and its stages."""

    run: Run
    arms: tuple[Arm, ...]

    @classmethod
    def of(cls, experiment: Experiment, shared: Path | None = None) -> "Pipeline":
        """Check the config of every stage, so that a late one's mistake costs no early one's work.

        Args:
            experiment: What to run.
            shared: See `Run`.

        Raises:
            ValueError: Which field, its value and the remedy; nothing has been done then.
        """
        check(experiment)
        compared = comparison(experiment)
        return cls(Run(experiment, compared.networks, shared), compared.arms)

    def prepare(self) -> None:
        """Raw files to tables."""
        self.run.prepare()

    def recommender(self) -> None:
        """Train windows to vectors."""
        for name in self.run.networks:
            self.run.train_network(name)

    def adapt(self) -> None:
        """Prompts and vectors to adapters: one for each arm and seed, seed by seed."""
        experiment = self.run.experiment
        if any(arm.method.is_adapter for arm in self.arms):
            self.run.make_stand_in()
        for seed in range(experiment.seeds):
            for arm in self.arms:
                if seed in arm.method.seeds(experiment, arm.settings):
                    self._train(arm, seed)

    def _train(self, arm: Arm, seed: int) -> None:
        stage = arm.method.stage(self.run, arm, seed)
        if stage is not None:
            folder = arm_folder(self.run, arm, seed)
            run_stage(stage, folder, lambda: arm.method.train(self.run, arm, seed, folder))

    def evaluate(self) -> None:
        """Arms to predictions."""
        evaluating.evaluate(self.run, self.arms)

    def report(self) -> Mapping[str, Any]:
        """Predictions to what a person reads; returns what `results.json` holds."""
        results = report(self.run, self.arms)
        print((self.run.folder / SUMMARY).read_text(encoding="utf-8"))
        return results

    def run_all(self) -> Mapping[str, Any]:
        """Every stage in order; returns what `results.json` holds."""
        self.prepare()
        self.recommender()
        self.adapt()
        self.evaluate()
        return self.report()


def check(experiment: Experiment) -> None:
    """Refuse impossible values of every stage; arms are checked as they are resolved.

    Raises:
        ValueError: Which field, its value and the remedy.
    """
    adapt = experiment.adapt
    at_least_one = {
        "seeds": experiment.seeds,
        "adapt.save_steps": adapt.save_steps,
        "adapt.logging_steps": adapt.logging_steps,
        "adapt.stand_in.max_steps": adapt.stand_in.max_steps,
        "adapt.stand_in.batch_size": adapt.stand_in.batch_size,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    preparing.check_config(experiment.prepare)
    evaluating.check_config(experiment.evaluate, experiment.prepare.num_candidates)
