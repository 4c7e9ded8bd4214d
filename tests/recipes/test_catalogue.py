"""Rankings of all items: places, masks and labels, by hand and from the command line."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.arms import comparison
from recipes.artifacts import read_table
from recipes.data.hub import from_dataset_dict, to_dataset_dict
from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.evaluation import catalogue
from recipes.evaluation.catalogue import catalogue_places, ranked_counts
from recipes.evaluation.evaluate import check_arms, check_config
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.summary import random_order, random_value
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
)
from recipes.methods.method import Arm
from recipes.methods.recommender_methods import CounterMethod
from recipes.pipeline import Pipeline
from recipes.recommenders import RECOMMENDERS
from recipes.recommenders.recommender import Counter
from recipes.scoring.masking import Masked
from recipes.scoring.rows import evaluated_rows

ITEMS, WIDTH = 6, 2
ALL = EvaluateConfig(candidates="catalogue", min_history=1, ks=[1])


def split_of(walks: dict[int, list[int]], held: int) -> Split:
    """The last `held` windows of each user; histories show the newest `WIDTH` items."""
    windows = [
        (user, walk[:at], walk[at], at == len(walk) - 1)
        for user, walk in walks.items()
        for at in range(len(walk) - held, len(walk))
    ]
    histories = np.full((len(windows), WIDTH), PADDING)
    for line, (_, history, _, _) in zip(histories, windows, strict=True):
        shown = history[-WIDTH:]
        line[WIDTH - len(shown) :] = shown
    return Split(
        user_ids=np.array([user for user, *_ in windows]),
        histories=histories,
        history_lengths=(histories != PADDING).sum(axis=1),
        targets=np.array([target for _, _, target, _ in windows]),
        candidates=np.tile(np.arange(ITEMS), (len(windows), 1)),
        is_last=np.array([last for *_, last in windows]),
    )


WALKS = {3: [0, 1, 2, 3], 5: [5, 4, 0, 4], 9: [1, 2]}
"""User 5 meets item 4 again."""


def data_of(walks: dict[int, list[int]] = WALKS) -> PreparedData:
    """All but each user's last item in train, the last in test."""
    train = {user: walk[:-1] for user, walk in walks.items()}
    splits = [split_of({u: w}, len(w)) for u, w in train.items()]
    joined = {
        name: np.concatenate([getattr(one, name) for one in splits])
        for name in vars(splits[0])
        if name != "further_candidates"
    }
    titles = [f"title {item}" for item in range(ITEMS)]
    return PreparedData(titles, {"train": Split(**joined), "test": split_of(walks, 1)})


def places(scores, config, data=None):
    data = data or data_of()
    rows = evaluated_rows(data, config)
    masked = Masked.nothing() if config.mask == "none" else Masked.history(data, rows)
    found = catalogue_places(lambda rows: np.array(scores)[rows.rows], rows, masked, config)
    return found, ranked_counts(rows, masked, config)


# Item by item, for users 3, 5 and 9: their targets are 3, 4 and 2.
SCORES = [[9.0, -1, 3, 2, 8, 2], [1.0, 7, 1, 1, 1, 5], [-4.0, 3, -1, -2, -2, -1]]


@pytest.mark.parametrize(
    ("mask", "better", "tied", "counts"),
    [
        ("none", [3, 2, 1], [2, 4, 2], [6, 6, 6]),
        # Left out: 0, 1 and 2; 5 and 0, while 4 is the target; 1.
        ("history", [1, 1, 0], [2, 3, 2], [3, 4, 5]),
        # These score 0: below the first targets, above the last one's -1.
        ("zero", [1, 1, 1], [2, 3, 2], [6, 6, 6]),
    ],
)
def test_places_among_all_items_by_hand(mask, better, tied, counts):
    found, ranked = places(SCORES, replace(ALL, mask=mask))
    assert (found.better.tolist(), found.tied.tolist()) == (better, tied)
    assert ranked.tolist() == counts


def test_items_that_the_history_no_longer_shows_are_masked_too():
    data = data_of()
    rows = evaluated_rows(data, ALL)
    assert data.split("test").histories[0].tolist() == [1, 2]
    masked = Masked.history(data, rows)
    pairs = list(zip(masked.rows.tolist(), masked.items.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 5), (2, 1)]


@given(st.integers(1, 20), st.sampled_from(["none", "history", "zero"]), st.integers(0, 99))
def test_chunks_change_nothing(size, mask, seed):
    scores = np.random.default_rng(seed).integers(-2, 3, size=(3, ITEMS)).astype(float)
    config = replace(ALL, mask=mask)
    whole, _ = places(scores.copy(), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "SCORES", size)
        found, _ = places(scores.copy(), config)
    assert found.better.tolist() == whole.better.tolist()
    assert found.tied.tolist() == whole.tied.tolist()


@pytest.mark.parametrize("average", ["rows", "users"])
def test_a_random_order_is_known_exactly_whatever_is_left_out(average):
    # Two rows of one user, which are ranked among 4 and 2 items, and one of another among 3.
    random = random_order(np.array([1, 1, 2]), np.array([4, 2, 3]))
    protocol = Protocol(replace(ALL, average=average, ks=[1, 3]), ITEMS)
    hit = random_value("hit_ratio@1/ranking", protocol, random)
    rows, users = (1 / 4 + 1 / 2 + 1 / 3) / 3, ((1 / 4 + 1 / 2) / 2 + 1 / 3) / 2
    assert hit == pytest.approx(rows if average == "rows" else users)
    found = random_value("mrr/ranking", protocol, random)
    own = [(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 + 1 / 2) / 2, (1 + 1 / 2 + 1 / 3) / 3]
    expected = sum(own) / 3 if average == "rows" else ((own[0] + own[1]) / 2 + own[2]) / 2
    assert found == pytest.approx(expected)


METHODS = [CounterMethod(one) for one in RECOMMENDERS.values() if issubclass(one, Counter)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_scores_all_items_as_it_scores_candidates(method):
    data = data_of()
    run: Any = SimpleNamespace(data=data)
    arm = Arm(method.name, method, {}, method.configure(Experiment(), {}))
    rows = evaluated_rows(data, ALL)
    some = evaluated_rows(data, replace(ALL, candidates="sampled"))
    assert rows.whole_catalogue and not some.whole_catalogue
    with method.scorer(run, arm, 0) as scorer:
        np.testing.assert_allclose(scorer(rows), scorer(some), rtol=1e-6)


# ------------------------------------------------------------------ several draws


def test_several_draws_are_so_many_lines_of_a_row():
    data = data_of()
    further = np.tile(np.arange(ITEMS)[::-1], (3, 1, 1))
    test = replace(data.split("test"), further_candidates=further)
    both = replace(data, splits={**data.splits, "test": test})
    rows = evaluated_rows(both, replace(ALL, candidates="sampled"))
    assert (rows.rows.tolist(), rows.draws) == ([0, 0, 1, 1, 2, 2], 2)
    assert rows.target_index.tolist() == [3, 2, 4, 1, 2, 3]
    assert rows.candidates[:2].tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    assert evaluated_rows(both, ALL).draws == 1
    words = Protocol(EvaluateConfig(), 20, draws=2).words
    assert words == "20 sampled candidates, mean of 2 draws"


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvaluateConfig(mask="zero"), "evaluate.mask='zero'.*candidates='sampled'.*`catalogue`"),
        (EvaluateConfig(mask="history"), "evaluate.mask='history'"),
    ],
)
def test_a_mask_of_sampled_candidates_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_cutoff_beyond_the_catalogue_is_refused_once_its_size_is_known():
    config = replace(ALL, ks=[1, ITEMS])
    check_config(config, 2)
    assert evaluated_rows(data_of(), config).num_candidates == ITEMS
    with pytest.raises(ValueError, match=r"\[7\], but the catalogue has 6 items"):
        evaluated_rows(data_of(), replace(ALL, ks=[7]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"evaluate": ALL},
            "candidates='catalogue': the arm 'lora' .*leave it out, or .*`sampled`",
        ),
        ({"prepare": PrepareConfig(candidate_draws=3)}, "candidate_draws=3: the arm 'lora'"),
    ],
)
def test_arms_that_read_the_candidates_are_refused(fields, message):
    experiment = Experiment(arms=[{"method": "sasrec"}, {"method": "lora"}], **fields)
    with pytest.raises(ValueError, match=message):
        check_arms(experiment, comparison(experiment).arms)
    with pytest.raises(ValueError, match=message):
        Pipeline.of(experiment)
    assert Pipeline.of(replace(experiment, arms=[{"method": "sasrec"}])).arms


# ------------------------------------------------------------------ a run


def ring(folder, num_candidates=20, **changes):
    experiment = Experiment(
        out=str(folder),
        prepare=PrepareConfig(
            dataset="ring", protocol="chronological", num_candidates=num_candidates
        ),
        adapt=AdaptConfig(methods=["popularity", "markov"]),
        evaluate=replace(
            ALL, **{"rows": "last", "ks": [1, 10], "bootstrap_samples": 100, **changes}
        ),
    )
    return Pipeline.of(experiment).run_all()


def value(results, method, key):
    (found,) = [e for e in results["metrics"] if (e["method"], e["key"]) == (method, key)]
    return found["value"], found["label"]


def test_a_run_ranks_all_items_and_says_so_everywhere(tmp_path):
    results = ring(tmp_path, mask="history", rows="all", average="users")
    words = "all 40 items, history left out, all windows, mean over users"
    assert value(results, "markov", "hit_ratio@1/ranking") == (
        1.0,
        f"HitRatio@1 (transition count, {words})",
    )
    # The windows of a user are ranked among 39, 38, .. 33 items.
    chance = np.mean([10 / count for count in range(39, 32, -1)])
    assert value(results, "random", "hit_ratio@10/ranking")[0] == pytest.approx(chance)
    assert results["evaluated"]["chance"] == pytest.approx(chance)
    table = read_table(tmp_path / "predictions.parquet")
    assert "scores" not in table and {"better", "tied"} <= set(table)
    page = (tmp_path / "report.md").read_text()
    assert f"## Ranked items (n = 168 rows, 24 users, {words})" in page
    assert "means over users of each user's mean over rows" in page
    assert words in (tmp_path / "summary.txt").read_text()
    assert "sampled candidates" not in page and "mask: none" not in page
    assert not any(entry["key"].startswith("valid") for entry in results["metrics"])


def test_a_catalogue_too_small_to_draw_from_is_ranked_as_a_whole(tmp_path, capsys):
    whole = ring(tmp_path / "drawn")
    small = ring(tmp_path / "small", num_candidates=41)
    assert "no candidates are drawn: num_candidates=41 asks for 40" in capsys.readouterr().out
    assert small["metrics"] == whole["metrics"]
    assert "Negatives" not in (tmp_path / "small" / "report.md").read_text()
    tables = tmp_path / "small" / "prepare"
    assert not (tables / "candidates.parquet").exists()
    assert (
        "**Negatives** were not drawn: num_candidates=41" in (tables / "manifest.json").read_text()
    )
    assert PreparedData.load(tables).split("test").candidates.shape[1] == 0
    windows = to_dataset_dict(tables)
    assert from_dataset_dict(windows).split("test").candidates.shape[1] == 0
    with pytest.raises(ValueError, match="candidates='sampled': num_candidates=41 asks for 40 neg"):
        ring(tmp_path / "sampled", num_candidates=41, candidates="sampled")
    assert [path.name for path in (tmp_path / "sampled").iterdir()] == ["prepare"]


def test_another_mask_ranks_again_and_another_average_does_not(tmp_path, monkeypatch):
    one = ring(tmp_path)
    assert any("met are ranked too" in caveat for caveat in one["caveats"])
    zero = ring(tmp_path, mask="zero")
    assert any("score 0" in caveat for caveat in zero["caveats"])
    monkeypatch.setattr(CounterMethod, "scorer", None)
    assert ring(tmp_path, mask="zero", average="users")


# ------------------------------------------------------------------ language models


OPEN = {"method": "ilora", "list_candidates": False}


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        ([{"method": "ilora"}], {}, "'ilora' ranks only .*adapt.list_candidates false"),
        ([{"method": "zero-shot"}], {}, "'zero-shot' ranks only .*prompts: leave it out"),
        ([OPEN], {"decoding": "free"}, "evaluate.decoding='free' must be `candidates`"),
        ([OPEN], {"num_beams": 9}, "ks holds 10, but evaluate.num_beams=9.*raise"),
        ([OPEN], {"num_beams": 10}, None),
    ],
)
def test_a_language_model_ranks_the_catalogue_by_beams_or_not_at_all(arms, changes, message):
    fields = {"ks": [1, 10], "decoding": "candidates", "num_beams": 10, **changes}
    evaluate = replace(ALL, **fields)
    experiment = Experiment(arms=arms, evaluate=evaluate)
    found = comparison(experiment).arms
    refused = nullcontext() if message is None else pytest.raises(ValueError, match=message)
    with refused:
        check_arms(experiment, found)


@pytest.mark.parametrize("mask", ["none", "history"])
def test_a_run_ranks_all_items_by_the_beams_of_a_model_that_saw_no_candidates(tmp_path, mask):
    stand_in = StandInConfig(
        hidden_size=16, num_heads=2, num_layers=1, intermediate_size=16, max_steps=2, batch_size=4
    )
    experiment = Experiment(
        out=str(tmp_path),
        prepare=PrepareConfig(dataset="ring", protocol="chronological"),
        recommender=RecommenderConfig(hidden_size=8, num_layers=1, max_epochs=1),
        arms=[OPEN],
        adapt=AdaptConfig(max_steps=2, batch_size=4, rank=4, stand_in=stand_in),
        evaluate=replace(
            ALL, ks=[1, 3], mask=mask, decoding="candidates", num_beams=3, bootstrap_samples=100
        ),
    )
    pipeline = Pipeline.of(experiment)
    results = pipeline.run_all()
    name = next(arm.name for arm in pipeline.arms if arm.method.name == "ilora")
    table = read_table(tmp_path / "predictions.parquet")
    own = table[table["method"] == name]
    listed, tied = own[own["tied"] == 1], own[own["tied"] > 1]
    assert set(listed["better"]) <= {0, 1, 2} and set(tied["better"]) <= {3}
    hidden = 0 if mask == "none" else 1
    assert (tied["tied"] + 3 <= ITEMS_OF_RING - hidden).all() and len(tied)
    value(results, name, "hit_ratio@3/ranking")
    page = (tmp_path / "report.md").read_text()
    assert "it writes titles by 3 beams" in page and "Sensitivity to the order" not in page


ITEMS_OF_RING = 40
