"""(adapters, frozen candidates) -> predictions.parquet, metrics.json and gates.json.

Each method and seed is a part of its own under `parts/`, so that an interrupted evaluation resumes
with the first part that is missing. Intervals are recomputed from the parts without any model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.artifacts import Record, read_table, read_tensors, run_stage, write_json, write_table
from recipes.data.tables import PreparedData
from recipes.evaluation.gates import gate_summary
from recipes.evaluation.parts import GATE_WEIGHTS, PREDICTIONS, finished, planned_parts
from recipes.evaluation.rows import EvaluatedRows, check_cutoffs, evaluated_rows
from recipes.evaluation.statistics import Resampling
from recipes.evaluation.summary import summarise
from recipes.experiment import EvaluateConfig, Method

METRICS, GATES = "metrics.json", "gates.json"


def evaluate(config: EvaluateConfig, run: Path, methods: Sequence[Method], seeds: int) -> Record:
    """Evaluate popularity, SASRec and each adapter on the same rows and candidates.

    Args:
        config: Rows, generation, cut-offs and intervals.
        run: The run's directory, with the stages before this one finished.
        methods: Trained methods.
        seeds: Each was trained with seeds 0 .. seeds-1.

    Raises:
        FileNotFoundError: An earlier stage has not been run.
        ValueError: The config does not fit the data.
    """
    resampling = check_config(config)
    data = PreparedData.load(run / "prepare")
    rows = evaluated_rows(data.split(config.split), config)
    parts = planned_parts(config, run, methods, seeds, rows)
    folder = run / "evaluate"

    def work() -> None:
        folders = [finished(part, config, folder / "parts") for part in parts]
        table = pd.concat([read_table(part / PREDICTIONS) for part in folders], ignore_index=True)
        write_table(folder / PREDICTIONS, table)
        summary = summarise(table, config.ks, rows.num_candidates, resampling)
        write_json(folder / METRICS, {"evaluated": _described(rows, config), **summary})
        write_json(folder / GATES, _gates(folder / "parts", methods, rows))

    inputs = {name: record for part in parts for name, record in part.inputs.items()}
    settings = asdict(config) | {"methods": list(methods), "seeds": seeds}
    return run_stage("evaluate", folder, settings, inputs, work)


def check_config(config: EvaluateConfig, num_candidates: int | None = None) -> Resampling:
    """Refuse impossible values before anything is loaded.

    Args:
        config: The stage's.
        num_candidates: Candidates of a row, where known already.

    Returns:
        How intervals are made.

    Raises:
        ValueError: Which field, its value and the remedy.
    """
    for name in ("batch_size", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise ValueError(f"evaluate.{name}={getattr(config, name)} must be at least 1")
    if num_candidates is not None:
        check_cutoffs(config.ks, num_candidates)
    return Resampling(
        samples=config.bootstrap_samples, confidence=config.confidence, seed=config.seed
    )


def _described(rows: EvaluatedRows, config: EvaluateConfig) -> Mapping[str, Any]:
    return {
        "split": config.split,
        "rows": config.rows,
        "min_history": config.min_history,
        "max_users": config.max_users,
        "num_rows": len(rows.rows),
        "num_users": len(np.unique(rows.user_ids)),
        "num_candidates": rows.num_candidates,
    }


def _gates(parts: Path, methods: Sequence[Method], rows: EvaluatedRows) -> Mapping[str, Any]:
    """Summary of each gated method's gate, seed 0."""
    found = {}
    for method in methods:
        path = parts / f"{method}-seed0" / GATE_WEIGHTS
        if path.exists():
            weights = read_tensors(path)["weights"].double().numpy()
            found[method] = gate_summary(weights, rows.user_ids, rows.rows, seed=0)
    return found
