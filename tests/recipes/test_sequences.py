import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.ragged import to_lists, to_padded
from recipes.data.sequences import sliding_windows


def interactions(users: list[tuple[int, str, list[int]]]) -> pd.DataFrame:
    rows = [
        (user, item, position, split)
        for user, split, items in users
        for position, item in enumerate(items)
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position", "split"])


def test_every_interaction_is_the_target_of_one_window() -> None:
    users = [(7, "train", [4, 5, 6]), (3, "train", [9]), (5, "test", [1, 2])]
    table = sliding_windows(interactions(users), max_history=2).examples()
    assert [list(history) for history in table["history"]] == [[], [4], [4, 5], [], [], [1]]
    assert table["target"].tolist() == [4, 5, 6, 9, 1, 2]
    assert table["user_id"].tolist() == [7, 7, 7, 3, 5, 5]
    assert table["split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert table["row"].tolist() == [0, 1, 2, 3, 0, 1]
    assert table["is_last"].tolist() == [False, False, True, True, False, True]


def test_histories_keep_the_newest_items_and_are_padded_on_the_left() -> None:
    windows = sliding_windows(interactions([(0, "train", [5, 6, 7, 8])]), max_history=2)
    assert windows.histories.tolist() == [[-1, -1], [-1, 5], [5, 6], [6, 7]]
    assert windows.histories.dtype == windows.targets.dtype == np.int64


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=6),
    st.integers(1, 5),
)
def test_windows_agree_with_slicing_user_by_user(items: list[list[int]], width: int) -> None:
    users = [(user, "train", sequence) for user, sequence in enumerate(items)]
    table = sliding_windows(interactions(users), width).examples()
    expected = [sequence[:index][-width:] for sequence in items for index in range(len(sequence))]
    assert [list(history) for history in table["history"]] == expected
    assert table["target"].tolist() == [item for sequence in items for item in sequence]


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]])
def test_interactions_out_of_order_are_refused(order: list[int]) -> None:
    table = interactions([(0, "train", [5, 6]), (1, "train", [7])]).take(order)
    with pytest.raises(ValueError, match="positions 0, 1, 2"):
        sliding_windows(table, 3)


def test_a_history_of_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="max_history=0"):
        sliding_windows(interactions([(0, "train", [5])]), 0)


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6))
def test_lists_survive_the_way_through_the_padded_matrix(lists: list[list[int]]) -> None:
    padded = to_padded([np.array(ids, np.int64) for ids in lists], 4)
    assert padded.shape == (len(lists), 4)
    assert [list(ids) for ids in to_lists(padded)] == lists


def test_a_list_wider_than_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="3 items does not fit max_history=2"):
        to_padded([np.array([1, 2, 3])], 2)
