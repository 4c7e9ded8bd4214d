"""The arms `file` and `text` in a whole run, against figures computed row by row from vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData
from recipes.experiment import EvaluateConfig, Experiment, PrepareConfig, SyntheticConfig
from recipes.pipeline import Pipeline
from recipes.recommenders.representations import Representations
from recipes.run import Run

from .test_text_encoder import save

KS = [1, 3]
SOURCES = ("file", "text")
PREPARE = PrepareConfig(
    protocol="chronological", synthetic=SyntheticConfig(num_users=40), num_candidates=6
)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Vectors of small whole numbers, so that many scores tie; and an encoder of few words."""
    folder = tmp_path_factory.mktemp("sources")
    run = Run(Experiment(out=str(folder / "run"), prepare=PREPARE), {})
    run.prepare()
    random = np.random.default_rng(0)
    users = pd.read_parquet(run.prepare_folder / "interactions.parquet")[["user_id", "position"]]
    items = pd.DataFrame({"item_id": np.arange(run.data.num_items)})
    for name, keys in (("users", users), ("items", items)):
        vectors = random.integers(-2, 3, (len(keys), 2)).astype(np.float32)
        keys.assign(vector=list(vectors)).to_parquet(folder / f"{name}.parquet")
    paths = {f"{name[:-1]}_vectors": str(folder / f"{name}.parquet") for name in ("users", "items")}
    encoder = str(save(folder / "bert"))
    return [{"method": "file"} | paths, {"method": "text", "encoder": encoder}]


def figures_of_row(
    vectors: Representations, data: PreparedData, row: int, config: EvaluateConfig
) -> dict[str, float]:
    """One row's metrics, as the mean over all orders of what ties with the target."""
    test = data.split("test")
    target = int(test.targets[row])
    ranked = {int(item) for item in test.candidates[row]}
    if config.candidates == "catalogue":
        ranked = set(range(data.num_items))
    if config.mask == "history":
        whole = data.earlier("test", np.array([row]))[0]
        ranked -= {int(item) for item in whole if item != PADDING} - {target}
    user = vectors.users["test"][row].double().numpy()
    items = vectors.items.double().numpy()
    score = {item: float((user * items[item]).sum()) for item in ranked}
    better = sum(score[item] > score[target] for item in ranked)
    tied = sum(score[item] == score[target] for item in ranked)
    places = range(better + 1, better + tied + 1)
    found = {"mrr/ranking": sum(1 / place for place in places) / tied}
    for k in KS:
        within = [place for place in places if place <= k]
        found[f"hit_ratio@{k}/ranking"] = len(within) / tied
        found[f"ndcg@{k}/ranking"] = sum(1 / np.log2(place + 1) for place in within) / tied
    return found


@pytest.mark.parametrize(
    ("candidates", "mask"), [("sampled", "none"), ("catalogue", "none"), ("catalogue", "history")]
)
def test_figures_are_those_of_the_vectors_row_by_row(
    arms: list[dict[str, Any]], tmp_path: Path, candidates: Any, mask: Any
) -> None:
    evaluate = EvaluateConfig(
        candidates=candidates, mask=mask, rows="all", min_history=1, ks=KS, bootstrap_samples=100
    )
    experiment = Experiment(out=str(tmp_path), prepare=PREPARE, arms=arms, evaluate=evaluate)
    results = Pipeline.of(experiment).run_all()
    pipeline = Pipeline.of(experiment)
    run, compared = pipeline.run, [one for one in pipeline.arms if one.method.name in SOURCES]
    assert len(compared) == len(SOURCES)
    rows = np.flatnonzero(run.data.split("test").history_lengths >= 1).tolist()
    for name in (one.name for one in compared):
        vectors = Representations.load(run.network_folder(name))
        own = [figures_of_row(vectors, run.data, row, evaluate) for row in rows]
        told = {m["key"]: m["value"] for m in results["metrics"] if m["method"] == name}
        for key in own[0]:
            assert told[key] == pytest.approx(np.mean([one[key] for one in own])), (name, key)
