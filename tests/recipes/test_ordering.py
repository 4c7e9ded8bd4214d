import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.datasets.ordering import order_by, places, run_starts


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-(2**40), 2**40)), min_size=1, max_size=20)
)
def test_the_order_is_that_of_lexsort(rows: list[tuple[int, int]]) -> None:
    first, second = np.array(rows, np.int64).T
    assert order_by(first, second).tolist() == np.lexsort((second, first)).tolist()
    assert order_by(second).tolist() == second.argsort(kind="stable").tolist()


@pytest.mark.parametrize("spread", [3, 2**16, 2**33, 2**62])
def test_many_rows_of_any_spread_are_sorted_stably(spread: int) -> None:
    keys = np.random.default_rng(0).integers(-spread, spread, 5000)
    assert np.array_equal(order_by(keys), keys.argsort(kind="stable"))


def test_no_rows_have_no_order() -> None:
    none = np.empty(0, np.int64)
    assert order_by(none, none).tolist() == run_starts(none).tolist() == []
    assert places(run_starts(none), 0).tolist() == []


def test_runs_begin_where_any_key_changes_and_places_count_within_them() -> None:
    first, second = np.array([4, 4, 4, 2, 2, 4]), np.array([1, 1, 3, 3, 3, 3])
    assert run_starts(first).tolist() == [0, 3, 5]
    starts = run_starts(first, second)
    assert starts.tolist() == [0, 2, 3, 5]
    assert places(starts, 6).tolist() == [0, 1, 0, 0, 1, 0]
