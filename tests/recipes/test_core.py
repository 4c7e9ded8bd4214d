import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.core import core_of, core_rows
from recipes.datasets.dataset import Interactions


def test_users_and_items_are_left_out_until_all_have_enough() -> None:
    # Item 9 has one user. Without it user 3 has one item, without whom item 7 has one user, without
    # which user 2 has one: items 4 and 5 of users 0 and 1 are left.
    pairs = [(0, 4), (3, 9), (1, 4), (3, 7), (0, 5), (2, 7), (1, 5), (2, 4)]
    users, items = np.array(pairs).T
    table = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": users * 10})
    titles = [f"title {item}" for item in range(10)]
    keys = [f"key {item}" for item in range(10)]
    found = core_of(Interactions(table, titles, items * 100, keys, ["a", "b", "c", "d"]), 2)
    assert found.table["user_id"].tolist() == [0, 1, 0, 1]
    assert found.table["item_id"].tolist() == [0, 0, 1, 1]
    assert found.table["timestamp"].tolist() == [0, 10, 0, 10]
    assert found.titles == ["title 4", "title 5"]
    assert found.item_keys == ["key 4", "key 5"]
    assert found.user_keys == ["a", "b", "c", "d"]
    assert found.ranking is not None and found.ranking.tolist() == [400, 400, 500, 500]


def test_a_core_without_interactions_is_refused() -> None:
    table = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 0], "timestamp": 0})
    with pytest.raises(ValueError, match="prepare.core=2 leaves no interactions of 2: choose a sm"):
        core_of(Interactions(table, ["title"]), 2)


def naive(pairs: list[tuple[int, int]], least: int) -> list[int]:
    kept = list(range(len(pairs)))
    while True:
        users = [pairs[row][0] for row in kept]
        items = [pairs[row][1] for row in kept]
        enough = [
            row
            for row in kept
            if users.count(pairs[row][0]) >= least and items.count(pairs[row][1]) >= least
        ]
        if enough == kept:
            return kept
        kept = enough


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_the_core_is_that_of_leaving_out_both_at_once(
    pairs: list[tuple[int, int]], least: int
) -> None:
    users, items = np.array(pairs).T
    assert core_rows(users, items, least).tolist() == naive(pairs, least)
