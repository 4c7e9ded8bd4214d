from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.checksums import Checksums
from recipes.data.prepare import prepare
from recipes.data.tables import PreparedData
from recipes.datasets.dataset import Interactions
from recipes.datasets.synthetic import (
    FOLLOW,
    NUM_CHAIN,
    POOL,
    PROFILE_LENGTH,
    Synthetic,
    ceilings,
    successors,
    titles,
    user_kinds,
)
from recipes.experiment import PrepareConfig, SyntheticConfig


def config(num_users: int = 20_000, num_kinds: int = 4, seed: int = 0) -> PrepareConfig:
    world = SyntheticConfig(num_users=num_users, num_kinds=num_kinds, seed=seed)
    return PrepareConfig(dataset="synthetic", synthetic=world)


def read(config: PrepareConfig) -> Interactions:
    return Synthetic().read(config, {})


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    """[users, 11] of the default world, only larger."""
    return read(config()).table["item_id"].to_numpy().reshape(20_000, -1)


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    return user_kinds(config().synthetic)


@pytest.mark.parametrize(
    ("kind", "title"),
    [(0, "amber harbor"), (1, "crimson falcon"), (2, "amber meadow"), (3, "violet falcon")],
)
def test_each_kind_moves_on_from_amber_falcon_by_its_own_rule(kind: int, title: str):
    names = titles(4)
    item = np.array(names.index("amber falcon"))
    assert names[int(successors(np.array(kind), item))] == title


def test_the_rules_contradict_each_other_at_every_item():
    table = successors(np.arange(4)[:, None], np.arange(NUM_CHAIN))
    assert all(len(set(column)) == 4 for column in table.T)
    assert all(sorted(row) == list(range(NUM_CHAIN)) for row in table)


def test_a_user_meets_different_profile_items_of_their_own_kind_first(sequences, kinds):
    profile = sequences[:, :PROFILE_LENGTH]
    assert ((profile - NUM_CHAIN) // POOL == kinds[:, None]).all()
    assert (np.diff(np.sort(profile, axis=1), axis=1) > 0).all()
    assert (sequences[:, PROFILE_LENGTH:] < NUM_CHAIN).all()


def test_the_chain_follows_the_rule_as_often_as_documented(sequences, kinds):
    chain = sequences[:, PROFILE_LENGTH:]
    followed = successors(kinds[:, None], chain[:, :-1]) == chain[:, 1:]
    assert followed.mean() == pytest.approx(FOLLOW + (1 - FOLLOW) / NUM_CHAIN, abs=0.002)


def test_the_last_item_says_nothing_about_the_kind(sequences, kinds):
    table = pd.crosstab(kinds, sequences[:, -2]).to_numpy()
    assert table.shape == (4, NUM_CHAIN)
    expected = len(kinds) / table.size
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 99.6  # 60 degrees of freedom: exceeded with probability 0.001


def test_kinds_are_balanced_and_independent_of_the_order_of_users(kinds):
    assert np.bincount(kinds).tolist() == [5000] * 4
    assert np.bincount(kinds[:2000]) == pytest.approx(np.full(4, 500), abs=80)


def test_timestamps_order_users_and_positions():
    interactions = read(config(num_users=50)).table
    assert interactions["timestamp"].is_monotonic_increasing
    assert interactions["timestamp"].is_unique
    assert interactions["position"].tolist() == list(range(11)) * 50
    assert set(interactions.dtypes.astype(str)) == {"int64"}


def test_the_seed_determines_the_world():
    first, again, other = (read(config(num_users=50, seed=seed)).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first["item_id"].equals(other["item_id"])


def test_no_title_contains_another_and_no_word_serves_chain_and_profile():
    names = titles(4)
    assert len(names) == 32
    assert not any(one in other for one, other in permutations(names, 2))
    chain = {word for name in names[:NUM_CHAIN] for word in name.split()}
    profile = [word for name in names[NUM_CHAIN:] for word in name.split()]
    assert len(chain) == 8
    assert len(set(profile)) == len(profile) == 32
    assert not chain & set(profile)


def simulated_hit_ratio(
    last: np.ndarray, targets: np.ndarray, priors: np.ndarray, num_candidates: int
) -> float:
    """HR@1 of picking the candidate of highest prior ([rows, items]); ties are broken by chance."""
    random = np.random.default_rng(7)
    order = random.random(priors.shape)
    rows = np.arange(len(targets))
    order[rows, targets] = -1
    candidates = order.argsort(axis=1)[:, :num_candidates]
    scores = np.take_along_axis(priors + 1e-9 * random.random(priors.shape), candidates, axis=1)
    return float((candidates[rows, scores.argmax(axis=1)] == targets).mean())


@pytest.mark.parametrize(("num_kinds", "num_candidates"), [(4, 20), (2, 20), (4, 4)])
def test_ceilings_match_a_simulation(num_kinds: int, num_candidates: int):
    world = config(num_users=40_000, num_kinds=num_kinds)
    found = read(world)
    names = found.titles
    *_, last, targets = found.table["item_id"].to_numpy().reshape(40_000, -1).T
    kind = user_kinds(world.synthetic)
    priors = np.zeros((num_kinds, NUM_CHAIN, len(names)))  # naive: P(target | kind, last item)
    priors[:, :, :NUM_CHAIN] = (1 - FOLLOW) / NUM_CHAIN
    for one in range(num_kinds):
        for item in range(NUM_CHAIN):
            priors[one, item, int(successors(np.array(one), np.array(item)))] += FOLLOW
    attainable = ceilings(num_kinds, num_candidates)
    oracle = simulated_hit_ratio(last, targets, priors[kind, last], num_candidates)
    blind = simulated_hit_ratio(last, targets, priors.mean(axis=0)[last], num_candidates)
    assert oracle == pytest.approx(attainable.oracle, abs=0.005)
    assert blind == pytest.approx(attainable.last_item, abs=0.008)


def test_ceilings_over_the_whole_catalogue_are_the_priors_of_the_best_items():
    assert ceilings(4, 32).oracle == pytest.approx(0.95 + 0.05 / 16)
    assert ceilings(4, 32).last_item == pytest.approx(0.95 / 4 + 0.05 / 16)


def test_without_kinds_there_is_nothing_for_the_history_to_add():
    assert ceilings(1).oracle == ceilings(1).last_item


def test_negatives_come_from_the_visible_history_as_often_as_from_elsewhere(tmp_path: Path):
    prepare(config(num_users=1500), tmp_path / "prepare", Checksums(tmp_path / "checksums.json"))
    split = PreparedData.load(tmp_path / "prepare").split("train")
    rows = split.history_lengths == 10
    histories, targets = split.histories[rows], split.targets[rows]
    drawn = (histories[:, :, None] == split.candidates[rows][:, None, :]).any(axis=2)
    share = drawn[histories != targets[:, None]].mean()
    assert share == pytest.approx(19 / 31, abs=0.03)


def test_a_source_folder_is_refused():
    with pytest.raises(ValueError, match="omit it"):
        Synthetic().raw_files(Path("somewhere"))


def test_the_datasets_ceilings_are_those_of_its_kinds_and_candidates():
    chosen = config(num_kinds=2)
    chosen.num_candidates = 4
    attainable = ceilings(2, 4)
    assert Synthetic().ceilings(chosen) == {
        "oracle": attainable.oracle,
        "last_item": attainable.last_item,
    }


def test_more_candidates_than_items_are_refused():
    with pytest.raises(ValueError, match="num_candidates=33"):
        ceilings(4, 33)
