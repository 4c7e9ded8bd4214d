from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recipes.data.splits import MIN_USERS, SPLITS, assign_splits, left_out_by_ties


def ordered(times: dict[int, list[int]]) -> pd.DataFrame:
    """Users one after the other, each with interactions at some times, in order."""
    rows = [(user, place, time) for user, own in times.items() for place, time in enumerate(own)]
    return pd.DataFrame(rows, columns=["user_id", "position", "timestamp"])


def splits_of(table: pd.DataFrame) -> dict[int, str]:
    """Each user's splits: their initials, in order."""
    found: dict[int, str] = {}
    for user, split in zip(table["user_id"].tolist(), table["split"].tolist(), strict=True):
        found[user] = found.get(user, "") + split[0]
    return found


# ------------------------------------------------------------------ users, 8:1:1


@pytest.mark.parametrize("protocol", ["llara", "chronological"])
def test_users_are_split_8_1_1_in_their_order(protocol: str) -> None:
    table = assign_splits(ordered({user: [user, user + 5] for user in range(10)}), protocol, 0.1)
    assert "".join(splits_of(table).values()) == "tt" * 8 + "vv" + "tt"
    assert table["split"].tolist() == ["train"] * 16 + ["val"] * 2 + ["test"] * 2


@pytest.mark.parametrize("users", [*range(MIN_USERS, 200), 943, 1220, 11938])
def test_no_split_of_users_is_ever_empty(users: int) -> None:
    table = pd.DataFrame({"user_id": np.arange(users), "position": 0, "timestamp": 0})
    counts = Counter(assign_splits(table, "llara", 0.1)["split"].tolist())
    assert counts["train"] == int(0.8 * users)
    assert counts["val"] == int(0.9 * users) - int(0.8 * users) > 0
    assert counts["test"] == users - int(0.9 * users) > 0


def test_too_few_users_are_refused() -> None:
    table = ordered({user: [user] for user in range(5)})
    message = "5 users cannot be split 8:1:1; give at least 6, or choose prepare.protocol=leave-one"
    with pytest.raises(ValueError, match=message):
        assign_splits(table, "chronological", 0.1)


# ------------------------------------------------------------------ leave one out


def test_the_last_interaction_is_for_testing_and_the_one_before_for_validation() -> None:
    table = ordered({4: [1, 2, 3, 4], 9: [1, 2], 2: [5, 5, 5], 7: [1]})
    found = splits_of(assign_splits(table, "leave-one-out", 0.1))
    assert found == {4: "ttvt", 9: "tt", 2: "tvt", 7: "t"}
    split = assign_splits(table, "leave-one-out", 0.1)["split"].tolist()
    assert split == ["train"] * 2 + ["val", "test"] + ["train"] * 3 + ["val", "test", "train"]


def test_users_with_less_than_three_interactions_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="no user has 3 interactions .*protocol=temporal"):
        assign_splits(ordered({0: [1, 2], 1: [3]}), "leave-one-out", 0.1)


# ------------------------------------------------------------------ two cuts in time


def test_time_is_cut_at_the_same_two_moments_for_all_users() -> None:
    # Ten times: the cuts lie at the ninth and the tenth, 9 and 20.
    table = ordered({1: [1, 3, 9], 2: [2, 4, 5, 20], 3: [6, 7, 8]})
    split = assign_splits(table, "temporal", 0.1)["split"].tolist()
    assert split == ["train"] * 2 + ["val"] + ["train"] * 3 + ["test"] + ["train"] * 3


def test_interactions_of_a_cuts_time_follow_it() -> None:
    # The second cut falls on the tenth time, 7, which nine interactions do not precede.
    table = ordered({1: [1, 2, 3, 4, 5, 5, 6, 7, 7, 7]})
    split = assign_splits(table, "temporal", 0.2)["split"].tolist()
    assert split == ["train"] * 6 + ["val"] + ["test"] * 3


def test_a_cut_that_leaves_a_split_empty_is_refused() -> None:
    message = r"prepare.holdout=0.1 leaves no interactions in val, as too many have one time"
    with pytest.raises(ValueError, match=message):
        assign_splits(ordered({1: [1, 2, 2, 2, 2, 2, 2, 2, 2, 2]}), "temporal", 0.1)


@pytest.mark.parametrize("protocol", ["chronological", "leave-one-out", "temporal"])
def test_no_interactions_at_all_are_refused(protocol: str) -> None:
    with pytest.raises(ValueError, match="filters leave no interactions"):
        assign_splits(ordered({1: [1]}).iloc[:0], protocol, 0.1)


def test_a_cut_in_time_needs_times() -> None:
    table = ordered({1: [1, 2, 3]}).assign(timestamp=pd.array([None] * 3, "Int64"))
    with pytest.raises(ValueError, match="'temporal' cuts in time, and these .* have no times"):
        assign_splits(table, "temporal", 0.1)


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=8),
    st.sampled_from([0.05, 0.1, 0.25, 0.4]),
)
def test_splits_follow_each_other_in_time(times: list[list[int]], holdout: float) -> None:
    table = ordered({user: sorted(own) for user, own in enumerate(times)})
    try:
        table = assign_splits(table, "temporal", holdout)
    except ValueError:
        assume(False)
    rows = list(zip(table["split"].tolist(), table["timestamp"].tolist(), strict=True))
    own = {name: [time for split, time in rows if split == name] for name in SPLITS}
    assert max(own["train"]) < min(own["val"]) <= max(own["val"]) < min(own["test"])
    # The second cut is the time at the quantile: as many as it says, or fewer, come before it.
    after = int(round((1 - holdout) * len(rows), 6))
    assert len(own["train"]) + len(own["val"]) <= after
    assert sum(time <= min(own["test"]) for _, time in rows) > after


# ------------------------------------------------------------------ targets that share their time


def test_targets_of_validation_and_test_that_share_their_time_are_left_out() -> None:
    table = ordered({1: [1, 1, 3, 4], 2: [1, 2, 2, 5], 3: [1, 2, 3, 3]})
    table = assign_splits(table, "leave-one-out", 0.1)
    none, tied = [False, False], [True, True]
    assert left_out_by_ties(table).tolist() == none + none + none + [True, False] + none + tied
