import numpy as np
import pandas as pd
import pytest

from recipes.data.splits import MIN_USERS, assign_splits


def interactions(starts: dict[int, int | None]) -> pd.DataFrame:
    """Two interactions a user, the later one in the first row."""
    rows = [
        (user, position, None if start is None else start + 1000 * position)
        for user, start in starts.items()
        for position in (1, 0)
    ]
    table = pd.DataFrame(rows, columns=["user_id", "position", "timestamp"])
    return table.astype({"timestamp": "Int64"})


def splits_of(table: pd.DataFrame) -> dict[str, list[int]]:
    users = table.drop_duplicates("user_id")
    return {name: users["user_id"][users["split"] == name].tolist() for name in users["split"]}


def test_users_are_ranked_by_their_first_timestamp_and_split_8_1_1() -> None:
    table = assign_splits(interactions({user: 100 - user for user in range(10)}))
    assert splits_of(table) == {"train": [9, 8, 7, 6, 5, 4, 3, 2], "val": [1], "test": [0]}
    assert table["user_id"].tolist()[:4] == [9, 9, 8, 8]
    assert table["position"].tolist()[:4] == [0, 1, 0, 1]


def test_ties_and_missing_timestamps_keep_the_order_of_first_rows() -> None:
    starts = {30: 5, 10: None, 20: 5, 40: 1, 60: None, 50: 5}
    table = assign_splits(interactions(starts))
    assert splits_of(table) == {"train": [40, 30, 20, 50], "val": [10], "test": [60]}


def test_a_ranking_of_its_own_overrides_the_timestamps() -> None:
    table = interactions({user: user for user in range(6)})
    ranked = assign_splits(table, ranking=-table["user_id"].to_numpy())
    assert splits_of(ranked) == {"train": [5, 4, 3, 2], "val": [1], "test": [0]}


@pytest.mark.parametrize("users", [*range(MIN_USERS, 200), 943, 1220, 11938])
def test_no_split_is_ever_empty(users: int) -> None:
    table = pd.DataFrame({"user_id": np.arange(users), "position": 0, "timestamp": 0})
    counts = assign_splits(table)["split"].value_counts()
    assert counts["train"] == int(0.8 * users)
    assert counts["val"] == int(0.9 * users) - int(0.8 * users) > 0
    assert counts["test"] == users - int(0.9 * users) > 0


def test_too_few_users_are_refused() -> None:
    with pytest.raises(ValueError, match="5 users cannot be split 8:1:1; give at least 6"):
        assign_splits(interactions({user: user for user in range(5)}))
