import ir_measures
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import ScoredDoc, Success, nDCG

from recipes.evaluation.metrics import (
    gains,
    hits,
    random_hit_ratio,
    random_ndcg,
    rank_of_target,
    sampled_label,
)
from recipes.evaluation.outcomes import metrics_for, outcomes_of


def test_rank_counts_the_candidates_that_score_higher():
    scores = [[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [0.0, -1.0, 7.0]]
    assert rank_of_target(scores, [0, 0, 0]).tolist() == [3, 1, 2]


def test_ties_count_against_the_method():
    assert rank_of_target([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], [0, 1]).tolist() == [2, 3]


def test_a_model_that_scores_everything_alike_hits_nothing():
    ranks = rank_of_target(np.zeros((5, 20)), [0, 5, 10, 15, 19])
    assert hits(ranks, 10).mean() == 0.0


def test_minus_infinity_is_ranked_last():
    assert rank_of_target([[-np.inf, 0.0, -3.0]], [0]).tolist() == [3]


@pytest.mark.parametrize(
    ("scores", "index", "message"),
    [
        ([[np.nan, 1.0]], [1], "NaN"),
        ([[0.0, 1.0]], [2], "target_index must lie"),
        ([[0.0, 1.0]], [-1], "target_index must lie"),
        ([0.0, 1.0], [0], "must be"),
        ([[0.0, 1.0]], [0, 1], "must be"),
    ],
)
def test_unrankable_scores_are_refused(scores, index, message):
    with pytest.raises(ValueError, match=message):
        rank_of_target(scores, index)


def test_hit_ratio_of_a_hand_made_ranking():
    ranks = [1, 2, 3, 4, 11]
    assert hits(ranks, 3).tolist() == [1, 1, 1, 0, 0]
    assert [hits(ranks, k).mean() for k in (1, 3, 5, 10)] == [0.2, 0.6, 0.8, 0.8]


def test_ndcg_of_a_hand_made_ranking():
    ranks = [1, 2, 3, 4]
    np.testing.assert_allclose(gains(ranks, 3), [1.0, 0.6309297536, 0.5, 0.0])
    assert gains(ranks, 3).mean() == pytest.approx((1 + 0.6309297536 + 0.5) / 4)
    assert gains(ranks, 1).tolist() == hits(ranks, 1).tolist()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 20))
def test_ndcg_gains_between_two_cutoffs_stay_below_what_the_hits_allow(ranks, k):
    # NDCG@(k+2) - NDCG@k <= (HR@(k+2) - HR@k) / log2(k+2): each new hit is at rank k+1 or worse.
    new_hits = hits(ranks, k + 2).mean() - hits(ranks, k).mean()
    new_gains = gains(ranks, k + 2).mean() - gains(ranks, k).mean()
    assert new_gains <= new_hits / np.log2(k + 2) + 1e-12


def test_hit_ratio_and_ndcg_agree_with_ir_measures():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(40, 20))
    targets = generator.integers(20, size=40)
    qrels = {str(row): {str(target): 1} for row, target in enumerate(targets)}
    run = [
        ScoredDoc(str(row), str(column), scores[row, column])
        for row in range(40)
        for column in range(20)
    ]
    ranks = rank_of_target(scores, targets)
    for k in (1, 3, 5, 10):
        theirs = ir_measures.calc_aggregate([Success @ k, nDCG @ k], qrels, run)
        assert hits(ranks, k).mean() == pytest.approx(theirs[Success @ k])
        assert gains(ranks, k).mean() == pytest.approx(theirs[nDCG @ k])


def ratios_of(items, ranks):
    """Every metric of one seed whose target is always item 5; -1 is an invalid answer."""
    table = pd.DataFrame(
        {
            "seed": 0,
            "row": range(len(items)),
            "user_id": range(len(items)),
            "target": 5,
            "predicted_item": pd.array(items, dtype="Int64"),
            "substring_item": pd.array(items, dtype="Int64"),
            "rank": ranks,
        }
    )
    return {
        metric.key: outcomes_of(metric, table).per_seed()[0] for metric in metrics_for([1, 3], 20)
    }


def test_the_two_denominators_of_the_hit_ratio_differ_by_the_invalid_rows():
    found = ratios_of([5, 3, -1, -1], [1, 2, 3, 4])
    for rule in ("generation", "substring"):
        assert found[f"valid_ratio/{rule}"] == 0.5
        assert found[f"hit_ratio@1/{rule}/total"] == 0.25
        assert found[f"hit_ratio@1/{rule}/valid"] == 0.5


def test_hit_ratio_of_valid_is_undefined_without_a_valid_row():
    found = ratios_of([-1, -1], [1, 2])
    assert found["hit_ratio@1/generation/valid"] is None
    assert found["hit_ratio@1/generation/total"] == 0.0


def test_ranked_outcomes_of_a_hand_made_ranking_are_its_hits_and_gains():
    found = ratios_of([5] * 5, [1, 2, 3, 4, 11])
    assert (found["hit_ratio@1/ranking"], found["hit_ratio@3/ranking"]) == (0.2, 0.6)
    assert found["ndcg@3/ranking"] == pytest.approx((1 + 0.6309297536 + 0.5) / 5)
    assert found["ndcg@1/ranking"] == found["hit_ratio@1/ranking"]


@pytest.mark.parametrize("metric", [hits, gains])
def test_cutoffs_and_ranks_start_at_one(metric):
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric([1], 0)
    with pytest.raises(ValueError, match="ranks start at 1"):
        metric([0], 1)


def test_no_rows_have_no_metric():
    with pytest.raises(ValueError, match="no rows"):
        hits([], 1)
    with pytest.raises(ValueError, match="no rows"):
        gains([], 1)


def test_random_expectations_match_a_simulation():
    ranks = np.random.default_rng(0).integers(1, 21, size=200_000)
    for k in (1, 5, 20):
        assert hits(ranks, k).mean() == pytest.approx(random_hit_ratio(k, 20), abs=0.005)
        assert gains(ranks, k).mean() == pytest.approx(random_ndcg(k, 20), abs=0.005)


def test_sampled_figures_say_so():
    assert sampled_label(20) == "20 sampled candidates"
