"""The parts of an evaluation: one for each method and seed, each resumable on its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recipes.artifacts import Record, read_record, read_table, run_stage, write_table, write_tensors
from recipes.data.tables import PreparedData
from recipes.evaluation.baselines import popularity_scores
from recipes.evaluation.predictions import llm_predictions, scored_predictions
from recipes.evaluation.rows import EvaluatedRows
from recipes.experiment import EvaluateConfig, Method
from recipes.llm.adapted import AdaptedModel, load_adapted
from recipes.recommender.representations import Representations

PREDICTIONS, GATE_WEIGHTS = "predictions.parquet", "gates.safetensors"
SUMMARY_FIELDS = ("ks", "bootstrap_samples", "confidence", "seed")
"""Fields that no prediction depends on: changing them runs no model again."""


@dataclass(frozen=True)
class Part:
    """Predictions of one method and seed, still to be made."""

    method: str
    seed: int
    inputs: dict[str, Record]
    """Stages that are read."""
    predict: Callable[[], tuple[pd.DataFrame, Tensor | None]]
    """Make the predictions and, for a gated method, the gate weights (float32 [n, K])."""

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"


def planned_parts(
    config: EvaluateConfig, run: Path, methods: Sequence[Method], seeds: int, rows: EvaluatedRows
) -> list[Part]:
    """All parts of an evaluation: popularity, SASRec, and every adapter.

    Raises:
        FileNotFoundError: A stage that is read has not been run.
    """
    before = {name: read_record(run / name, name) for name in ("prepare", "recommender")}
    parts = [
        Part("popularity", 0, before, lambda: (_popularity(run, rows), None)),
        _sasrec(run, rows, before),
    ]
    for method in methods:
        for seed in range(seeds):
            record = read_record(run / "adapt" / f"{method}-seed{seed}", "adapt")
            inputs = before | {f"{method}-seed{seed}": record}
            parts.append(Part(method, seed, inputs, _adapted(config, run, method, seed, rows)))
    return parts


def finished(part: Part, config: EvaluateConfig, folder: Path) -> Path:
    """Run the part into its own folder under `folder`, unless that has been done; return it."""
    settings = {name: value for name, value in asdict(config).items() if name not in SUMMARY_FIELDS}
    own = folder / part.name

    def work() -> None:
        table, weights = part.predict()
        write_table(own / PREDICTIONS, table)
        if weights is not None:
            write_tensors(own / GATE_WEIGHTS, {"weights": weights})

    run_stage("evaluate", own, settings | {"part": part.name}, part.inputs, work)
    return own


def _popularity(run: Path, rows: EvaluatedRows) -> pd.DataFrame:
    interactions = read_table(run / "prepare" / "interactions.parquet")
    num_items = PreparedData.load(run / "prepare").num_items
    scores = popularity_scores(interactions, num_items, rows.candidates)
    return scored_predictions("popularity", 0, rows, scores)


def _sasrec(run: Path, rows: EvaluatedRows, inputs: dict[str, Record]) -> Part:
    seed = int(inputs["recommender"].config["seed"])

    def predict() -> tuple[pd.DataFrame, None]:
        vectors = Representations.load(run / "recommender")
        scores = vectors.scores(rows.split, rows.rows, rows.candidates).double().numpy()
        return scored_predictions("sasrec", seed, rows, scores), None

    return Part("sasrec", seed, inputs, predict)


def _adapted(
    config: EvaluateConfig, run: Path, method: Method, seed: int, rows: EvaluatedRows
) -> Callable[[], tuple[pd.DataFrame, Tensor | None]]:
    def predict() -> tuple[pd.DataFrame, Tensor | None]:
        adapted = load_adapted(run, method, seed)
        titles = PreparedData.load(run / "prepare").titles
        table = llm_predictions(adapted, method, seed, rows, titles, config)
        return table, _gate_weights(adapted, rows, config.batch_size)

    return predict


@torch.inference_mode()
def _gate_weights(adapted: AdaptedModel, rows: EvaluatedRows, batch_size: int) -> Tensor | None:
    """Expert weights of every row, float32 [n, K]; None for a method without a gate."""
    found = []
    for batch in np.array_split(rows.rows, range(batch_size, len(rows.rows), batch_size)):
        weights = adapted.gate_weights(rows.split, batch.tolist())
        if weights is None:
            return None
        found.append(weights.float().cpu())
    return torch.cat(found)
