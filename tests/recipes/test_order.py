from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.order import TieRule, in_order, tie_counts, tied_rows
from recipes.datasets.dataset import Interactions

RULES: tuple[TieRule, ...] = get_args(TieRule)


def interactions(
    rows: list[tuple[int, int, int | None]], ranking: list[int] | None = None
) -> Interactions:
    """Rows (user, item, time) in the order of the file."""
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table = table.astype({"timestamp": "Int64"})
    titles = [f"title {item}" for item in range(100)]
    return Interactions(table, titles, None if ranking is None else np.array(ranking))


def walks(table: pd.DataFrame) -> dict[int, list[int]]:
    """Each user's items, in the order of the rows."""
    found: dict[int, list[int]] = {}
    for user, item in zip(table["user_id"], table["item_id"], strict=True):
        found.setdefault(user, []).append(item)
    return found


# User 5's times: item 7 at 1, items 9, 2 and 4 at 3, item 1 at 8. User 3's: all at 2.
ROWS = [(5, 9, 3), (3, 6, 2), (5, 1, 8), (5, 2, 3), (3, 4, 2), (5, 7, 1), (3, 5, 2), (5, 4, 3)]


def test_equal_times_keep_the_order_of_the_file() -> None:
    expected = {5: [7, 9, 2, 4, 1], 3: [6, 4, 5]}
    for rule in ("stable", "drop"):
        found = in_order(interactions(ROWS), rule, 0)
        assert walks(found) == expected
        assert list(walks(found)) == [5, 3]  # by first times, 1 and 2
    assert found["position"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert found["timestamp"].tolist() == [1, 3, 3, 3, 8, 2, 2, 2]


def test_equal_times_are_in_ascending_order_of_items() -> None:
    found = in_order(interactions(ROWS), "item-id", 0)
    assert walks(found) == {5: [7, 2, 4, 9, 1], 3: [4, 5, 6]}


def test_equal_times_are_in_an_order_drawn_from_the_seed() -> None:
    orders = {tuple(walks(in_order(interactions(ROWS), "random", seed))[5]) for seed in range(50)}
    assert {(order[0], order[-1]) for order in orders} == {(7, 1)}
    assert len(orders) == 6  # all orders of the three items of one time
    one, same = (in_order(interactions(ROWS), "random", 4) for _ in range(2))
    pd.testing.assert_frame_equal(one, same)


def test_every_random_order_is_as_likely_as_any_other() -> None:
    # 6 orders of 3 items by 6000 users: 1000 each, standard deviation 29.
    rows = [(user, item, 0) for user in range(6000) for item in range(3)]
    found = walks(in_order(interactions(rows), "random", 1)).values()
    counts = pd.Series([tuple(items) for items in found]).value_counts()
    assert len(counts) == 6
    assert counts.between(870, 1130).all()


def test_a_users_random_order_does_not_depend_on_others() -> None:
    rows = [(user, item, item // 4) for user in range(9) for item in range(12)]
    whole = walks(in_order(interactions(rows), "random", 3))
    some = walks(in_order(interactions([row for row in rows if row[0] in (2, 7)]), "random", 3))
    assert some == {user: whole[user] for user in (2, 7)}
    assert len({tuple(items) for items in whole.values()}) == 9


def test_without_times_the_order_is_that_of_the_file() -> None:
    rows = [(1, 5, None), (0, 3, None), (1, 2, None), (0, 9, None)]
    assert walks(in_order(interactions(rows), "stable", 0)) == {1: [5, 2], 0: [3, 9]}


def test_times_of_some_interactions_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 interactions have no time: leave them out"):
        in_order(interactions([(0, 1, 5), (0, 2, None)]), "stable", 0)


def test_an_order_of_the_datasets_own_goes_before_times() -> None:
    found = interactions([(0, 1, 5), (0, 2, 3), (0, 3, 4)])
    found.table["position"] = [0, 2, 1]
    assert walks(in_order(found, "stable", 0)) == {0: [1, 3, 2]}


def test_users_come_in_the_order_of_their_ranking() -> None:
    rows = [(30, 0, 5), (10, 0, 1), (20, 0, 5), (40, 0, 7)]
    assert list(walks(in_order(interactions(rows), "stable", 0))) == [10, 30, 20, 40]
    ranked = interactions(rows, ranking=[2, 3, 1, 0])
    assert list(walks(in_order(ranked, "stable", 0))) == [40, 20, 30, 10]


def test_users_without_times_come_last_where_the_dataset_orders_itself() -> None:
    found = interactions([(60, 1, None), (10, 0, 9), (60, 0, None), (50, 0, None), (20, 3, 4)])
    found.table["position"] = [1, 0, 0, 0, 0]
    ordered = in_order(found, "stable", 0)
    assert walks(ordered) == {20: [3], 10: [0], 60: [0, 1], 50: [0]}


def test_ties_are_counted() -> None:
    ordered = in_order(interactions(ROWS), "stable", 0)
    assert tied_rows(ordered).tolist() == [False, True, True, True, False, True, True, True]
    counts = tie_counts(ordered)
    assert (counts.users, counts.users_with_tied_last) == (2, 1)
    assert counts.share_of_neighbours == 4 / 6
    alone = tie_counts(in_order(interactions([(1, 2, 3)]), "stable", 0))
    assert (alone.users_with_tied_last, alone.share_of_neighbours) == (0, 0.0)


TABLES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=30
)


@given(TABLES, st.sampled_from(RULES), st.integers(0, 2**32 - 1))
def test_a_rule_moves_interactions_of_equal_time_alone(
    rows: list[tuple[int, int, int]], rule: TieRule, seed: int
) -> None:
    found = in_order(interactions(rows), rule, seed)
    stable = in_order(interactions(rows), "stable", 0)
    columns = ["user_id", "timestamp", "position"]
    pd.testing.assert_frame_equal(found[columns], stable[columns])
    keys = ["user_id", "timestamp", "item_id"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys)[keys].reset_index(drop=True),
        stable.sort_values(keys)[keys].reset_index(drop=True),
    )
    for user, own in found.groupby("user_id"):
        file = [row for row in rows if row[0] == user]
        assert own["position"].tolist() == list(range(len(file)))
        if rule in ("stable", "drop"):
            assert own["item_id"].tolist() == [row[1] for row in sorted(file, key=lambda r: r[2])]
        if rule == "item-id":
            expected = [row[1] for row in sorted(file, key=lambda r: (r[2], r[1]))]
            assert own["item_id"].tolist() == expected


@given(TABLES)
def test_tied_rows_are_those_of_a_time_that_the_user_has_twice(
    rows: list[tuple[int, int, int]],
) -> None:
    ordered = in_order(interactions(rows), "stable", 0)
    expected = ordered.duplicated(["user_id", "timestamp"], keep=False)
    assert tied_rows(ordered).tolist() == expected.tolist()
