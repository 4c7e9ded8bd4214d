import numpy as np
import pytest

from recipes.datasets.unstable_sort import INSERTION, unstable_order


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 18, 40, 300, 800])
@pytest.mark.parametrize("different", [1, 2, 7, 10_000])
def test_ties_stand_where_numpy_s_scalar_sort_leaves_them(size: int, different: int) -> None:
    keys = np.random.default_rng(size).integers(0, different, size)
    # A type for which numpy has no vector instructions still takes the steps written out here.
    scalar = np.argsort(keys.astype(object), kind="quicksort")
    assert unstable_order(keys).tolist() == scalar.tolist()


def test_a_short_run_is_sorted_by_insertion_which_is_stable() -> None:
    keys = np.array([3, 1, 3, 1, 2, 1])
    assert unstable_order(keys).tolist() == [1, 3, 5, 4, 0, 2]
    keys = np.zeros(INSERTION + 1, np.int64)
    assert unstable_order(keys).tolist() == list(range(INSERTION + 1))


def test_equal_keys_are_shuffled_by_the_partition_worked_out_by_hand() -> None:
    # 17 equal keys: the middle one (8) is the pivot and changes places with 15. Then the two ends
    # run towards each other and exchange 1 with 14, 2 with 13, .., up to where they meet at 8; and
    # there the pivot changes places once more.
    order = unstable_order(np.zeros(17, np.int64)).tolist()
    assert order == [0, 14, 13, 12, 11, 10, 9, 15, 8, 6, 5, 4, 3, 2, 1, 7, 16]


def test_keys_that_would_change_over_to_a_heap_sort_are_refused() -> None:
    # McIlroy, "A killer adversary for quicksort": keys get their values as they are asked.
    with pytest.raises(ValueError, match="heap sort"):
        unstable_order(killer(2000))


def killer(size: int) -> np.ndarray:
    """Keys on which the median of three is always among the smallest."""
    gas = size  # larger than every value that has been given
    values = [gas] * size
    given = candidate = 0

    class Key:
        def __init__(self, index: int) -> None:
            self.index = index

        def __lt__(self, other: "Key") -> bool:
            nonlocal given, candidate
            one, two = self.index, other.index
            if values[one] == values[two] == gas:
                values[one if one == candidate else two] = given
                given += 1
            if values[one] == gas:
                candidate = one
            elif values[two] == gas:
                candidate = two
            return values[one] < values[two]

    np.argsort(np.array([Key(i) for i in range(size)], object), kind="quicksort")
    return np.array(values)
