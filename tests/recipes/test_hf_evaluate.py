"""The module for Hugging Face's `evaluate`, loaded offline by its path."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes.evaluation.metrics import Places, gains, hits, places_of, reciprocal_ranks

MODULE = Path(__file__).parents[2] / "recipes" / "evaluation" / "hf" / "sequential_ranking"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` of the module, with its files in a folder of the test's."""
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda *names: evaluate.load(str(MODULE), *names, cache_dir=str(tmp_path))


def test_scores_and_targets_give_our_figures_ties_included(load):
    generator = np.random.default_rng(0)
    scores, targets = generator.integers(5, size=(30, 12)), generator.integers(12, size=30)
    found = load().compute(predictions=scores.tolist(), references=targets.tolist(), ks=[1, 5])
    places = places_of(scores, targets)
    assert found == {
        "hit_ratio@1": pytest.approx(hits(places, 1).mean()),
        "hit_ratio@5": pytest.approx(hits(places, 5).mean()),
        "ndcg@1": pytest.approx(gains(places, 1).mean()),
        "ndcg@5": pytest.approx(gains(places, 5).mean()),
        "mrr": pytest.approx(reciprocal_ranks(places).mean()),
    }


def test_ranks_give_our_figures_batch_by_batch_too(load):
    ranks = [1, 2, 3, 4, 11]
    metric, places = load("ranks"), Places.of_ranks(ranks)
    whole = metric.compute(predictions=ranks)
    metric.add_batch(predictions=ranks[:2])
    metric.add_batch(predictions=ranks[2:])
    assert metric.compute() == whole
    assert whole["hit_ratio@10"] == 0.8 and whole["ndcg@5"] == pytest.approx(
        gains(places, 5).mean()
    )
    assert whole["mrr"] == pytest.approx(reciprocal_ranks(places).mean())


def test_another_configuration_is_refused(load):
    with pytest.raises(ValueError, match="config_name='rank'"):
        load("rank")


SCORES = [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (["ranks"], {"predictions": [1.7, 3]}, "predictions holds 1.7: give a list of whole"),
        (["ranks"], {"predictions": [0, 3]}, "predictions holds 0: give .* whole numbers from 1"),
        ([], {"predictions": SCORES, "references": [0.9, 1]}, "references holds 0.9"),
        ([], {"predictions": SCORES, "references": [0, 2]}, "target_index must lie in"),
        ([], {"predictions": SCORES, "references": [0, 1], "ks": 5}, "ks is no list"),
        ([], {"predictions": [[1.0], [1.0, 2]], "references": [0, 1]}, "every row as many scores"),
    ],
)
def test_what_has_no_place_is_refused(load, config, given, message):
    with pytest.raises(ValueError, match=message):
        load(*config).compute(**given)


@pytest.mark.slow
@pytest.mark.long
def test_a_fresh_process_without_a_network_loads_it(tmp_path):
    code = (
        f"import evaluate; m = evaluate.load({str(MODULE)!r}); "
        "print(m.compute(predictions=[[0, 1], [1, 0]], references=[1, 1], ks=[1]))"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True
    )
    assert "'hit_ratio@1': 0.5" in done.stdout, done.stderr
