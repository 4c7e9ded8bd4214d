import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.padding import PADDING, padded, to_padded
from recipes.data.sequences import Windows, given_windows, sliding_windows
from recipes.datasets.dataset import ReadyWindows


def interactions(users: list[tuple[int, str, list[int]]]) -> pd.DataFrame:
    rows = [
        (user, item, position, split)
        for user, split, items in users
        for position, item in enumerate(items)
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position", "split"])


def every_row(windows: Windows) -> slice:
    return slice(0, len(windows.targets))


def histories(windows: Windows) -> list[list[int]]:
    """Every history, from the items that lie behind each other."""
    items = windows.items(every_row(windows))
    assert len(items) == windows.lengths.sum()
    return [part.tolist() for part in np.split(items, windows.lengths.cumsum())[:-1]]


def test_every_interaction_is_the_target_of_one_window() -> None:
    users = [(7, "train", [4, 5, 6]), (3, "train", [9]), (5, "test", [1, 2])]
    windows = sliding_windows(interactions(users), max_history=2)
    assert histories(windows) == [[], [4], [4, 5], [], [], [1]]
    assert windows.targets.tolist() == [4, 5, 6, 9, 1, 2]
    assert windows.table["user_id"].tolist() == [7, 7, 7, 3, 5, 5]
    assert windows.table["split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert windows.splits.tolist() == [0, 0, 0, 0, 2, 2]
    assert windows.table["row"].tolist() == [0, 1, 2, 3, 0, 1]
    assert windows.table["is_last"].tolist() == [False, False, True, True, False, True]


def test_histories_keep_the_newest_items_and_are_padded_on_the_left() -> None:
    windows = sliding_windows(interactions([(0, "train", [5, 6, 7, 8])]), max_history=2)
    cut = windows.cut(np.arange(len(windows.targets)))
    assert cut.tolist() == [[-1, -1], [-1, 5], [5, 6], [6, 7]]
    assert cut.dtype == windows.targets.dtype == windows.items(every_row(windows)).dtype == np.int64


sequences = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=6)


@given(sequences, st.integers(1, 5))
def test_windows_agree_with_slicing_user_by_user(items: list[list[int]], width: int) -> None:
    users = [(user, "train", sequence) for user, sequence in enumerate(items)]
    windows = sliding_windows(interactions(users), width)
    expected = [sequence[:index][-width:] for sequence in items for index in range(len(sequence))]
    assert histories(windows) == expected
    assert windows.targets.tolist() == [item for sequence in items for item in sequence]


@given(sequences, st.integers(1, 5), st.data())
def test_any_stretch_of_rows_is_cut_as_it_is_among_all_rows(
    items: list[list[int]], width: int, data: st.DataObject
) -> None:
    users = [(user, "train", sequence) for user, sequence in enumerate(items)]
    windows = sliding_windows(interactions(users), width)
    whole = windows.cut(np.arange(len(windows.targets)))
    start = data.draw(st.integers(0, len(whole)))
    rows = slice(start, data.draw(st.integers(start, len(whole))))
    some = np.arange(len(whole))[rows]
    np.testing.assert_array_equal(windows.cut(some), whole[rows])
    np.testing.assert_array_equal(windows.cut(some[::-2]), whole[rows][::-2])
    assert windows.items(rows).tolist() == whole[rows][whole[rows] != PADDING].tolist()


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]])
def test_interactions_out_of_order_are_refused(order: list[int]) -> None:
    table = interactions([(0, "train", [5, 6]), (1, "train", [7])]).take(order)
    with pytest.raises(ValueError, match="positions 0, 1, 2"):
        sliding_windows(table, 3)


def test_a_history_of_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="max_history=0"):
        sliding_windows(interactions([(0, "train", [5])]), 0)


# ------------------------------------------------------------------ windows that come ready


def ready(*rows: tuple[str, int, list[int], int, bool], titles: int = 10) -> ReadyWindows:
    columns = ["split", "user_id", "history", "target", "is_last"]
    table = pd.DataFrame(rows, columns=columns)
    table["history"] = [np.array(history) for history in table["history"]]
    return ReadyWindows(table, [f"title {item}" for item in range(titles)])


READY = ready(
    ("test", 8, [1, 2], 3, True),
    ("train", 5, [], 4, False),
    ("train", 5, [4, 0, 9], 6, True),
    ("val", 2, [7], 8, True),
    ("train", 1, [3, 3], 2, True),
)


def test_ready_windows_are_grouped_by_split_in_the_order_in_which_they_come() -> None:
    windows = given_windows(READY, max_history=2)
    assert windows.table["split"].tolist() == ["train"] * 3 + ["val", "test"]
    assert windows.table["row"].tolist() == [0, 1, 2, 0, 0]
    assert windows.table["user_id"].tolist() == [5, 5, 1, 2, 8]
    assert windows.table["is_last"].tolist() == [False, True, True, True, True]
    assert windows.targets.tolist() == [4, 6, 2, 8, 3]
    assert windows.lengths.tolist() == [0, 2, 2, 1, 2]
    assert histories(windows) == [[], [0, 9], [3, 3], [7], [1, 2]]
    assert windows.cut(np.arange(1, 4)).tolist() == [[0, 9], [3, 3], [-1, 7]]
    assert windows.items(slice(1, 4)).tolist() == [0, 9, 3, 3, 7]


ONE_OF_EACH = [(split, user, [1], 3, True) for user, split in enumerate(("train", "val", "test"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("valid", 1, [2], 3, True), "windows of split 'valid': name splits train, val, test"),
        (("val", 1, [10], 3, True), "item ids from 1 to 10, but there are 10 titles"),
        (("val", 1, [2, -1], 3, True), "windows hold item ids from -1"),
        (("val", 1, [2], 10, True), "item ids from 3 to 10"),
        (("val", 1, [2], -1, True), "item ids from -1 to 3"),
    ],
)
def test_ready_windows_of_unknown_splits_or_items_are_refused(
    row: tuple[str, int, list[int], int, bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        given_windows(ready(*ONE_OF_EACH, row), 4)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_ready_windows_without_any_of_a_split_are_refused(place: int) -> None:
    rows = [row for row in ONE_OF_EACH if row is not ONE_OF_EACH[place]]
    with pytest.raises(ValueError, match=f"no windows of split {ONE_OF_EACH[place][0]}"):
        given_windows(ready(*rows), 4)


def test_ready_windows_too_are_refused_a_history_of_no_items() -> None:
    with pytest.raises(ValueError, match="max_history=0"):
        given_windows(READY, 0)


# ------------------------------------------------------------------ padding


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6))
def test_lists_survive_the_way_through_the_padded_matrix(lists: list[list[int]]) -> None:
    matrix = to_padded([np.array(ids, np.int64) for ids in lists], 4)
    assert matrix.shape == (len(lists), 4)
    assert matrix.tolist() == [[PADDING] * (4 - len(ids)) + ids for ids in lists]
    flat = np.array([item for ids in lists for item in ids], np.int64)
    lengths = np.array([len(ids) for ids in lists], np.int64)
    np.testing.assert_array_equal(padded(flat, lengths, 4), matrix, strict=True)


def test_a_list_wider_than_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="3 items does not fit max_history=2"):
        to_padded([np.array([1, 2, 3])], 2)
