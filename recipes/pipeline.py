"""The whole story: prepare -> recommender -> adapt -> evaluate -> report.

    raw files ── prepare ──> interactions, items, examples, candidates
                               │
    train windows ─ recommender ──> user representations, item embeddings   (SASRec)
                               │
    prompts + vectors ── adapt ──> one adapter for each method and seed     (LLM with LoRA, iLoRA)
                               │
    frozen candidates ─ evaluate ──> predictions, ranks
                               │
                            report ──> results.json, report.md, plots

Each stage reads earlier stages' files only, and is skipped when they and its config are unchanged.
"""

from collections.abc import Callable
from pathlib import Path

from recipes.artifacts import Record
from recipes.experiment import Experiment


def run_prepare(experiment: Experiment) -> Record:
    """Raw files to tables."""
    from recipes.data.prepare import prepare

    return prepare(experiment.prepare, Path(experiment.out) / "prepare")


def run_recommender(experiment: Experiment) -> Record:
    """Train windows to vectors."""
    from recipes.recommender.train import train_recommender

    run = Path(experiment.out)
    return train_recommender(experiment.recommender, run / "prepare", run / "recommender")


def run_adapt(experiment: Experiment) -> Record:
    """Prompts and vectors to adapters."""
    from recipes.llm.adapt import adapt

    return adapt(experiment.adapt, Path(experiment.out), experiment.seeds)


def run_evaluate(experiment: Experiment) -> Record:
    """Adapters to predictions."""
    from recipes.evaluation.evaluate import evaluate

    return evaluate(
        experiment.evaluate, Path(experiment.out), experiment.adapt.methods, experiment.seeds
    )


def run_report(experiment: Experiment) -> Record:
    """Predictions to what a person reads."""
    from recipes.report.report import report

    record = report(experiment, Path(experiment.out))
    print((Path(experiment.out) / "summary.txt").read_text(encoding="utf-8"))
    return record


STAGES: dict[str, Callable[[Experiment], Record]] = {
    "prepare": run_prepare,
    "recommender": run_recommender,
    "adapt": run_adapt,
    "evaluate": run_evaluate,
    "report": run_report,
}


def check(experiment: Experiment) -> None:
    """Check the config of every stage, so that a late one's mistake costs no early one's work.

    Raises:
        ValueError: Which field, its value and the remedy.
    """
    from recipes.data import prepare
    from recipes.evaluation import evaluate
    from recipes.llm import adapt
    from recipes.recommender import train

    prepare.check_config(experiment.prepare)
    train.check_config(experiment.recommender)
    adapt.check_config(experiment.adapt, experiment.seeds)
    evaluate.check_config(experiment.evaluate, experiment.prepare.num_candidates)


def run_all(experiment: Experiment) -> None:
    """Every stage in order.

    Raises:
        ValueError: A field of any stage has an impossible value; nothing has been done then.
    """
    check(experiment)
    for stage in STAGES.values():
        stage(experiment)
