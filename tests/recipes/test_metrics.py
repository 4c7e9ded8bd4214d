import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import ScoredDoc, Success, nDCG

from recipes.evaluation.metrics import (
    gains,
    hit_ratio,
    hit_ratio_of_total,
    hit_ratio_of_valid,
    hits,
    ndcg,
    random_hit_ratio,
    random_ndcg,
    rank_of_target,
    sampled_label,
    valid_ratio,
)


def test_rank_counts_the_candidates_that_score_higher():
    scores = [[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [0.0, -1.0, 7.0]]
    assert rank_of_target(scores, [0, 0, 0]).tolist() == [3, 1, 2]


def test_ties_count_against_the_method():
    assert rank_of_target([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], [0, 1]).tolist() == [2, 3]


def test_a_model_that_scores_everything_alike_hits_nothing():
    ranks = rank_of_target(np.zeros((5, 20)), [0, 5, 10, 15, 19])
    assert hit_ratio(ranks, 10) == 0.0


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
    assert [hit_ratio(ranks, k) for k in (1, 3, 5, 10)] == [0.2, 0.6, 0.8, 0.8]


def test_ndcg_of_a_hand_made_ranking():
    ranks = [1, 2, 3, 4]
    np.testing.assert_allclose(gains(ranks, 3), [1.0, 0.6309297536, 0.5, 0.0])
    assert ndcg(ranks, 3) == pytest.approx((1 + 0.6309297536 + 0.5) / 4)
    assert ndcg(ranks, 1) == hit_ratio(ranks, 1)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 20))
def test_ndcg_gains_between_two_cutoffs_stay_below_what_the_hits_allow(ranks, k):
    # NDCG@(k+2) - NDCG@k <= (HR@(k+2) - HR@k) / log2(k+2): each new hit is at rank k+1 or worse.
    new_hits = hit_ratio(ranks, k + 2) - hit_ratio(ranks, k)
    assert ndcg(ranks, k + 2) - ndcg(ranks, k) <= new_hits / np.log2(k + 2) + 1e-12


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
        assert hit_ratio(ranks, k) == pytest.approx(theirs[Success @ k])
        assert ndcg(ranks, k) == pytest.approx(theirs[nDCG @ k])


def test_the_two_denominators_of_the_hit_ratio_differ_by_the_invalid_rows():
    correct, valid = [1, 0, 0, 0], [1, 1, 0, 0]
    assert valid_ratio(valid) == 0.5
    assert hit_ratio_of_total(correct) == 0.25
    assert hit_ratio_of_valid(correct, valid) == 0.5


def test_hit_ratio_of_valid_is_undefined_without_a_valid_row():
    assert hit_ratio_of_valid([0, 0], [0, 0]) is None


def test_a_correct_but_invalid_answer_is_refused():
    with pytest.raises(ValueError, match="not correct"):
        hit_ratio_of_valid([1], [0])


@pytest.mark.parametrize("metric", [hits, gains, hit_ratio, ndcg])
def test_cutoffs_and_ranks_start_at_one(metric):
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric([1], 0)
    with pytest.raises(ValueError, match="ranks start at 1"):
        metric([0], 1)


def test_no_rows_have_no_metric():
    with pytest.raises(ValueError, match="no rows"):
        hit_ratio([], 1)
    with pytest.raises(ValueError, match="no rows"):
        valid_ratio([])


def test_random_expectations_match_a_simulation():
    ranks = np.random.default_rng(0).integers(1, 21, size=200_000)
    for k in (1, 5, 20):
        assert hit_ratio(ranks, k) == pytest.approx(random_hit_ratio(k, 20), abs=0.005)
        assert ndcg(ranks, k) == pytest.approx(random_ndcg(k, 20), abs=0.005)


def test_sampled_figures_say_so():
    assert sampled_label(20) == "20 sampled candidates"
