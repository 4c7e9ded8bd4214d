import numpy as np
import pytest

from recipes.prompting.ragged import Ragged


@pytest.fixture
def rows() -> Ragged:
    return Ragged.from_rows([[1, 2, 3], [], [4], [5, 6]])


def test_rows_come_back_as_they_went_in(rows):
    assert [rows.row(i) for i in range(len(rows))] == [[1, 2, 3], [], [4], [5, 6]]
    assert rows.lengths.tolist() == [3, 0, 1, 2]


def test_take_selects_repeats_and_reorders(rows):
    taken = rows.take(np.array([3, 1, 0, 3]))
    assert [taken.row(i) for i in range(len(taken))] == [[5, 6], [], [1, 2, 3], [5, 6]]


def test_replaced_rows_may_have_another_length_and_any_order(rows):
    changed = rows.replaced(np.array([3, 1]), Ragged.from_rows([[7], [8, 9]]))
    assert [changed.row(i) for i in range(len(changed))] == [[1, 2, 3], [8, 9], [4], [7]]
    assert [rows.row(i) for i in range(len(rows))] == [[1, 2, 3], [], [4], [5, 6]]


def test_regrouped_joins_neighbours(rows):
    joined = rows.regrouped(np.array([2, 0, 2]))
    assert [joined.row(i) for i in range(len(joined))] == [[1, 2, 3], [], [4, 5, 6]]


def test_right_aligned_pads_on_the_left(rows):
    assert rows.right_aligned(4, fill=9).tolist() == [
        [9, 1, 2, 3],
        [9, 9, 9, 9],
        [9, 9, 9, 4],
        [9, 9, 5, 6],
    ]
