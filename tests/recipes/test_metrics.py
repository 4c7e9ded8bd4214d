from itertools import permutations

import ir_measures
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, ScoredDoc, Success, nDCG

from recipes.evaluation.metrics import Places, gains, hits, places_of, reciprocal_ranks
from recipes.evaluation.outcomes import metrics_for, outcomes_of
from recipes.evaluation.protocol import Protocol, headline_cutoff
from recipes.experiment import EvaluateConfig


def test_places_count_the_candidates_that_score_higher_and_the_same():
    scores = [[0.1, 0.9, 0.5], [3.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    places = places_of(scores, [0, 0, 1])
    assert (places.better.tolist(), places.tied.tolist()) == ([2, 0, 0], [1, 2, 3])


def test_minus_infinity_is_ranked_last():
    places = places_of([[-np.inf, 0.0, -3.0], [-np.inf, -np.inf, 1.0]], [0, 0])
    assert (places.better.tolist(), places.tied.tolist()) == ([2, 1], [1, 2])


def test_what_is_left_out_counts_neither_way_and_the_target_always_counts():
    out = [[False, True, False, True], [True, False, True, True]]
    places = places_of([[1, 2, 3, 1], [5, 4, 6, 5]], [0, 0], out)
    assert (places.better.tolist(), places.tied.tolist()) == ([1, 0], [1, 1])


@pytest.mark.parametrize(
    ("scores", "index", "message"),
    [
        ([[np.nan, 1.0]], [1], "NaN"),
        ([[0.0, 1.0]], [2], "target_index must lie"),
        ([[0.0, 1.0]], [-1], "target_index must lie"),
        ([0.0, 1.0], [0], "must be"),
        ([[0.0, 1.0]], [0, 1], "must be"),
        (np.zeros((0, 2)), [], "no rows"),
    ],
)
def test_unrankable_scores_are_refused(scores, index, message):
    with pytest.raises(ValueError, match=message):
        places_of(scores, index)


def test_hit_ratio_of_a_hand_made_ranking():
    places = Places.of_ranks([1, 2, 3, 4, 11])
    assert hits(places, 3).tolist() == [1, 1, 1, 0, 0]
    assert [hits(places, k).mean() for k in (1, 3, 5, 10)] == [0.2, 0.6, 0.8, 0.8]


def test_ndcg_and_mrr_of_a_hand_made_ranking():
    places = Places.of_ranks([1, 2, 3, 4])
    np.testing.assert_allclose(gains(places, 3), [1.0, 0.6309297536, 0.5, 0.0])
    assert gains(places, 1).tolist() == hits(places, 1).tolist()
    np.testing.assert_allclose(reciprocal_ranks(places), [1, 1 / 2, 1 / 3, 1 / 4])


def test_ties_by_hand():
    # One is better, and the target is one of three at its score: ranks 2, 3 and 4 alike.
    places = Places(np.array([1]), np.array([3]))
    assert hits(places, 1).tolist() == [0]
    assert hits(places, 2).tolist() == pytest.approx([1 / 3])
    assert hits(places, 4).tolist() == [1]
    assert gains(places, 3).tolist() == pytest.approx([(0.6309297536 + 0.5) / 3])
    assert reciprocal_ranks(places).tolist() == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4) / 3])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_every_metric_is_its_mean_over_all_orders_of_the_candidates(scores, k, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    # A stable sort of all orders of the candidates gives every order of the tied equally often.
    ranks = [
        1 + sorted(order, key=lambda item: -scores[item]).index(target)
        for order in permutations(range(len(scores)))
    ]
    one, many = places_of([scores], [target]), Places.of_ranks(ranks)
    for metric in (lambda at: hits(at, k), lambda at: gains(at, k), reciprocal_ranks):
        assert metric(one)[0] == pytest.approx(metric(many).mean())


def test_a_method_that_scores_everything_alike_is_worth_a_random_order():
    alike = places_of(np.zeros((1, 20)), [3])
    ranks = Places.of_ranks(range(1, 21))
    for k in (1, 5, 20):
        assert hits(alike, k)[0] == k / 20
        assert gains(alike, k)[0] == pytest.approx(gains(ranks, k).mean())
    assert reciprocal_ranks(alike)[0] == pytest.approx(reciprocal_ranks(ranks).mean())


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 20))
def test_ndcg_gains_between_two_cutoffs_stay_below_what_the_hits_allow(ranks, k):
    # NDCG@(k+2) - NDCG@k <= (HR@(k+2) - HR@k) / log2(k+2): each new hit is at rank k+1 or worse.
    places = Places.of_ranks(ranks)
    new_hits = hits(places, k + 2).mean() - hits(places, k).mean()
    new_gains = gains(places, k + 2).mean() - gains(places, k).mean()
    assert new_gains <= new_hits / np.log2(k + 2) + 1e-12


def theirs(scores, targets, measures):
    """ir-measures' figures of a table of scores [n, c]."""
    qrels = {str(row): {str(target): 1} for row, target in enumerate(targets)}
    run = [
        ScoredDoc(str(row), str(column), float(score))
        for row, line in enumerate(scores)
        for column, score in enumerate(line)
    ]
    return ir_measures.calc_aggregate(measures, qrels, run)


def test_metrics_agree_with_ir_measures():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(40, 20))
    targets = generator.integers(20, size=40)
    places = places_of(scores, targets)
    for k in (1, 3, 5, 10):
        found = theirs(scores, targets, [Success @ k, nDCG @ k])
        assert hits(places, k).mean() == pytest.approx(found[Success @ k])
        assert gains(places, k).mean() == pytest.approx(found[nDCG @ k])
    assert reciprocal_ranks(places).mean() == pytest.approx(theirs(scores, targets, [RR])[RR])


def test_ties_agree_with_ir_measures_over_random_orders():
    # ir-measures breaks ties by the document's id; shuffled and nudged scores break them at random.
    generator = np.random.default_rng(1)
    scores = generator.integers(4, size=(1, 8)).astype(float)
    target = int(scores.argmin())
    places = places_of(scores, [target])
    assert places.tied[0] > 1
    nudged = scores + 0.1 * generator.random((2000, 8))
    found = theirs(nudged, [target] * 2000, [Success @ 7, nDCG @ 7, RR])
    assert hits(places, 7)[0] == pytest.approx(found[Success @ 7], abs=0.04)
    assert gains(places, 7)[0] == pytest.approx(found[nDCG @ 7], abs=0.02)
    assert reciprocal_ranks(places)[0] == pytest.approx(found[RR], abs=0.01)


def ratios_of(items, ranks, users=None, **changes):
    """Every metric of one seed whose target is always item 5; -1 is an invalid answer."""
    table = pd.DataFrame(
        {
            "seed": 0,
            "row": range(len(items)),
            "draw": 0,
            "user_id": range(len(items)) if users is None else users,
            "target": 5,
            "predicted_item": pd.array(items, dtype="Int64"),
            "substring_item": pd.array(items, dtype="Int64"),
            "better": np.asarray(ranks) - 1,
            "tied": 1,
        }
    )
    protocol = Protocol(EvaluateConfig(ks=[1, 3], **changes), 20)
    return {one.key: outcomes_of(one, table).per_seed()[0] for one in metrics_for(protocol)}


def test_the_two_denominators_of_the_hit_ratio_differ_by_the_invalid_rows():
    found = ratios_of([5, 3, -1, -1], [1, 2, 3, 4])
    for rule in ("generation", "substring"):
        assert found[f"valid_ratio/{rule}"] == 0.5
        assert found[f"hit_ratio@1/{rule}/total"] == 0.25
        assert found[f"hit_ratio@1/{rule}/valid"] == 0.5


def test_hit_ratio_of_valid_is_undefined_without_a_valid_row():
    for average in ("rows", "users"):
        found = ratios_of([-1, -1], [1, 2], average=average)
        assert found["hit_ratio@1/generation/valid"] is None
        assert found["hit_ratio@1/generation/total"] == 0.0


def test_ranked_outcomes_of_a_hand_made_ranking_are_its_hits_and_gains():
    found = ratios_of([5] * 5, [1, 2, 3, 4, 11])
    assert (found["hit_ratio@1/ranking"], found["hit_ratio@3/ranking"]) == (0.2, 0.6)
    assert found["ndcg@3/ranking"] == pytest.approx((1 + 0.6309297536 + 0.5) / 5)
    assert found["ndcg@1/ranking"] == found["hit_ratio@1/ranking"]
    assert found["mrr/ranking"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 11) / 5)


def test_the_mean_over_users_counts_every_user_once():
    items, ranks, users = [5, 5, 3, -1, 5], [1, 2, 1, 1, 2], [7, 7, 7, 8, 9]
    rows = ratios_of(items, ranks, users)
    own = ratios_of(items, ranks, users, average="users")
    assert rows["hit_ratio@1/ranking"] == 3 / 5
    assert own["hit_ratio@1/ranking"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert own["mrr/ranking"] == pytest.approx(((1 + 0.5 + 1) / 3 + 1 + 0.5) / 3)
    assert own["valid_ratio/generation"] == pytest.approx((1 + 0 + 1) / 3)
    # User 8 has no valid answer, so it does not count here.
    assert own["hit_ratio@1/generation/valid"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("metric", [hits, gains])
def test_cutoffs_and_ranks_start_at_one(metric):
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric(Places.of_ranks([1]), 0)
    with pytest.raises(ValueError, match="counts from 0 and tied from 1"):
        Places.of_ranks([0])
    with pytest.raises(ValueError, match="counts from 0 and tied from 1"):
        Places(np.array([0]), np.array([0]))


def test_no_rows_have_no_metric():
    with pytest.raises(ValueError, match="no rows"):
        Places.of_ranks([])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "20 sampled candidates"),
        ({"rows": "first"}, "20 sampled candidates, first windows"),
        (
            {"average": "users", "rows": "all"},
            "20 sampled candidates, all windows, mean over users",
        ),
        ({"candidates": "catalogue"}, "all 3,646 items"),
        ({"candidates": "catalogue", "mask": "history"}, "all 3,646 items, history left out"),
        ({"candidates": "catalogue", "mask": "zero"}, "all 3,646 items, history scored 0"),
    ],
)
def test_figures_say_what_they_were_measured_on(changes, words):
    number = 3646 if "candidates" in changes else 20
    protocol = Protocol(EvaluateConfig(**changes), number)
    assert protocol.words == words
    labels = [one.label for one in metrics_for(protocol)]
    assert f"NDCG@5 ({{source}}, {words})" in labels and f"MRR ({{source}}, {words})" in labels


@pytest.mark.parametrize(
    ("ks", "whole", "k"),
    [
        ([1, 5], False, 1),
        ([5, 10], False, 5),
        ([5, 10, 20], True, 10),
        ([1, 3, 20], True, 3),
        ([20], True, 20),
    ],
)
def test_the_headline_is_the_smallest_cutoff_or_ten_of_all_items(ks, whole, k):
    assert headline_cutoff(ks, whole) == k
