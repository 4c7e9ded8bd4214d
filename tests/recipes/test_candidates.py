from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.candidates import CandidateStream
from recipes.data.splits import SplitName

NO_HISTORY = -1


def draw_candidates(
    excluded: np.ndarray,
    targets: np.ndarray,
    num_items: int,
    num_candidates: int,
    seed: int,
    split: SplitName,
) -> np.ndarray:
    """All rows of a split in one call."""
    return CandidateStream(num_items, num_candidates, seed, split).draw(excluded, targets)


@st.composite
def draws(draw: st.DrawFn) -> dict:
    """Arguments of `draw_candidates`, feasible for every row."""
    num_items, width = draw(st.integers(8, 30)), draw(st.integers(0, 5))
    ids = st.integers(-1, num_items - 1)
    rows = draw(st.lists(st.lists(ids, min_size=width, max_size=width), min_size=1, max_size=8))
    targets = [draw(st.integers(0, num_items - 1)) for _ in rows]
    taken = [{*row, target} - {NO_HISTORY} for row, target in zip(rows, targets, strict=True)]
    free = num_items - max(map(len, taken))
    return {
        "excluded": np.array(rows, np.int64).reshape(len(rows), width),
        "targets": np.array(targets, np.int64),
        "num_items": num_items,
        "num_candidates": 1 + draw(st.integers(1, free)),
        "seed": draw(st.integers(0, 2**40)),
        "split": draw(st.sampled_from(["train", "val", "test"])),
    }


def reference(excluded, targets, num_items, num_candidates, seed, split) -> list[list[int]]:
    """The documented draw, one row and one number at a time."""
    width = 2 * num_candidates - 1
    stream = np.random.SeedSequence([seed, ["train", "val", "test"].index(split)])
    numbers = np.random.Philox(stream).random_raw(width * len(targets)).tolist()
    drawn = []
    for row, target in enumerate(targets.tolist()):
        uniform = [(number >> 11) / 2**53 for number in numbers[row * width : (row + 1) * width]]
        free = [i for i in range(num_items) if i != target and i not in excluded[row].tolist()]
        chosen: list[int] = []
        for step in range(num_candidates - 1):
            last = len(free) - num_candidates + 1 + step
            rank = int(uniform[step] * (last + 1))
            chosen.append(last if rank in chosen else rank)
        row_candidates = [*(free[rank] for rank in chosen), target]
        keys = uniform[num_candidates - 1 :]
        drawn.append(
            [row_candidates[i] for i in sorted(range(num_candidates), key=keys.__getitem__)]
        )
    return drawn


@given(draws())
def test_a_row_has_its_target_once_and_different_negatives_outside_its_history(
    arguments: dict,
) -> None:
    candidates = draw_candidates(**arguments)
    assert candidates.shape == (len(arguments["targets"]), arguments["num_candidates"])
    assert candidates.dtype == np.int64
    for row, target, excluded in zip(
        candidates.tolist(), arguments["targets"], arguments["excluded"].tolist(), strict=True
    ):
        assert row.count(target) == 1
        assert len(set(row)) == len(row)
        assert min(row) >= 0 and max(row) < arguments["num_items"]
        assert not (set(row) - {target}) & set(excluded)


@given(draws(), st.data())
def test_a_row_does_not_depend_on_other_rows(arguments: dict, data: st.DataObject) -> None:
    candidates = draw_candidates(**arguments)
    count = data.draw(st.integers(1, len(candidates)))
    fewer = arguments | {key: arguments[key][:count] for key in ("excluded", "targets")}
    np.testing.assert_array_equal(draw_candidates(**fewer), candidates[:count])
    others = np.full_like(arguments["excluded"][: count - 1], NO_HISTORY)
    changed = np.concatenate([others, arguments["excluded"][count - 1 :]])
    redrawn = draw_candidates(**(arguments | {"excluded": changed}))
    np.testing.assert_array_equal(redrawn[count - 1 :], candidates[count - 1 :])


@given(draws())
def test_the_draw_agrees_with_drawing_row_by_row(arguments: dict) -> None:
    assert draw_candidates(**arguments).tolist() == reference(**arguments)


@given(draws(), st.data())
def test_rows_may_be_drawn_in_any_calls_in_any_order(arguments: dict, data: st.DataObject) -> None:
    whole = draw_candidates(**arguments)
    rows = {key: arguments.pop(key) for key in ("excluded", "targets")}
    stream = CandidateStream(**arguments)
    cut = data.draw(st.integers(0, len(whole)))
    for part in (slice(cut, None), slice(0, cut)):
        drawn = stream.draw(rows["excluded"][part], rows["targets"][part], part.start)
        np.testing.assert_array_equal(drawn, whole[part])


def many(seed: int = 0, split: SplitName = "test") -> np.ndarray:
    """60,000 rows: items 0 .. 7, history {1, 5}, target 3; negatives from {0, 2, 4, 6, 7}."""
    excluded = np.tile(np.array([NO_HISTORY, 5, 1]), (60_000, 1))
    targets = np.full(60_000, 3)
    return draw_candidates(excluded, targets, 8, 3, seed, split)


def test_every_set_of_negatives_is_equally_likely() -> None:
    candidates = many()
    negatives = np.sort(candidates[candidates != 3].reshape(-1, 2), axis=1)
    for pair in combinations([0, 2, 4, 6, 7], 2):
        count = (negatives == pair).all(axis=1).sum()
        assert count == pytest.approx(6000, abs=5 * np.sqrt(6000 * 0.9))


def test_the_target_is_equally_likely_at_every_place() -> None:
    counts = (many() == 3).sum(axis=0)
    assert counts == pytest.approx([20_000] * 3, abs=5 * np.sqrt(20_000 * 2 / 3))


def test_neighbouring_rows_are_independent() -> None:
    place = many().argmax(axis=1)
    same = (place[1:] == place[:-1]).mean()
    expected = (np.bincount(place) ** 2).sum() / len(place) ** 2
    assert same == pytest.approx(expected, abs=0.01)


def test_seed_and_split_each_change_the_draw() -> None:
    first = many()
    np.testing.assert_array_equal(first, many())
    assert (first != many(seed=1)).mean() > 0.5
    assert (first != many(split="val")).mean() > 0.5


def test_the_draw_is_frozen_for_ever() -> None:
    # A change here changes every published figure: it needs a new protocol, not a new literal.
    excluded = np.array([[NO_HISTORY, 0, 1], [2, 3, 4]])
    drawn = draw_candidates(excluded, np.array([2, 0]), 4606, 5, 1234, "test")
    assert drawn.tolist() == [[1596, 1844, 3114, 742, 2], [929, 976, 397, 0, 3082]]


def test_the_whole_catalogue_can_be_asked_for() -> None:
    drawn = draw_candidates(np.array([[0, 1]]), np.array([2]), 6, 4, 0, "train")
    assert sorted(drawn[0].tolist()) == [2, 3, 4, 5]


def test_a_catalogue_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_candidates=5 .* has only 3 of the 6 items left"):
        draw_candidates(np.array([[0, 1]]), np.array([2]), 6, 5, 0, "train")


@pytest.mark.parametrize(
    ("num_candidates", "seed", "message"), [(1, 0, "num_candidates=1"), (2, -1, "seed=-1")]
)
def test_settings_out_of_range_are_refused(num_candidates: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_candidates(np.array([[0]]), np.array([1]), 9, num_candidates, seed, "train")


def test_a_further_draw_has_a_stream_of_its_own() -> None:
    targets = np.arange(8)
    none = np.empty((8, 0), np.int64)
    draws = [CandidateStream(50, 5, 1, "val", number).draw(none, targets) for number in range(3)]
    assert len({tuple(drawn.ravel().tolist()) for drawn in draws}) == 3
    assert (draws[0] == CandidateStream(50, 5, 1, "val").draw(none, targets)).all()
    for drawn in draws:
        assert ((drawn == targets[:, None]).sum(axis=1) == 1).all()
