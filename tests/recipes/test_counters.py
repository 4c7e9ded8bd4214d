from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.padding import PADDING, to_padded
from recipes.data.tables import PreparedData, Split, joined
from recipes.experiment import EvaluateConfig, Experiment
from recipes.methods.method import Arm, Method
from recipes.methods.recommender_methods import CounterMethod
from recipes.recommenders import RECOMMENDERS
from recipes.recommenders.co_occurrence import CoOccurrence
from recipes.recommenders.markov import Markov
from recipes.recommenders.popularity import Popularity
from recipes.recommenders.recommender import Counter
from recipes.scoring.rows import EvaluatedRows, evaluated_rows

WIDTH = 3


def split_of(walks: list[list[int]], num_items: int) -> Split:
    """Every window of some users; all items are candidates."""
    windows = [
        (user, walk[:at], walk[at]) for user, walk in enumerate(walks) for at in range(len(walk))
    ]
    histories = [np.array(history[-WIDTH:], np.int64) for _, history, _ in windows]
    return Split(
        user_ids=np.array([user for user, _, _ in windows]),
        histories=to_padded(histories, WIDTH),
        history_lengths=np.array([len(history) for history in histories]),
        targets=np.array([target for _, _, target in windows]),
        candidates=np.tile(np.arange(num_items), (len(windows), 1)),
        is_last=np.array([len(history) == len(walks[user]) - 1 for user, history, _ in windows]),
    )


# Item 4 is met by nobody; 1 and 2 are met equally often. Of the 8 interactions 3 are 0, 2 are 1,
# 2 are 2 and 1 is 3.
TRAIN = split_of([[0, 1, 2], [0, 1, 3], [0, 2]], num_items=5)


def scores(counter: type[Counter], *rows: tuple[list[int], list[int]]) -> list[list[float]]:
    histories = to_padded([np.array(history, np.int64) for history, _ in rows], WIDTH)
    candidates = np.array([wanted for _, wanted in rows])
    found = counter(TRAIN, 5).scores(histories, candidates)
    assert found.dtype == np.float64
    return found.tolist()


# ------------------------------------------------------------------ popularity


def test_popularity_is_the_count_and_equal_counts_tie() -> None:
    everything = [[3, 0, 4, 2, 1]] * 2
    (one, other) = scores(Popularity, ([], everything[0]), ([0, 1, 2], everything[1]))
    assert one == other == [1, 3, 0, 2, 2]


# ------------------------------------------------------------------ the Markov chain


def test_transitions_are_counted_and_popularity_decides_between_equals() -> None:
    found = scores(Markov, ([0], [1, 2, 3, 4]), ([3, 0, 1], [2, 3, 0, 4]))
    # After 0 came 1 twice and 2 once; after 1 came 2 and 3 once each. Prior: counts / 9.
    assert found[0] == pytest.approx([2 + 2 / 9, 1 + 2 / 9, 1 / 9, 0])
    assert found[1] == pytest.approx([1 + 2 / 9, 1 + 1 / 9, 3 / 9, 0])


@pytest.mark.parametrize("history", [[], [3], [0, 4]])
def test_where_nothing_ever_followed_popularity_decides(history: list[int]) -> None:
    # Nothing; 3 was always the last item; nobody met 4.
    (found,) = scores(Markov, (history, [0, 1, 2, 3, 4]))
    assert found == pytest.approx([3 / 9, 2 / 9, 2 / 9, 1 / 9, 0])


def test_equal_counts_and_equal_popularity_are_a_tie() -> None:
    ((one, other),) = scores(Markov, ([4], [1, 2]))
    assert one == other


def test_only_the_last_item_counts() -> None:
    one, other = scores(Markov, ([2, 3, 0], [1, 2, 3, 4]), ([0], [1, 2, 3, 4]))
    assert one == other


walks = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=5)


@given(walks, st.lists(st.integers(0, 6), max_size=WIDTH))
def test_the_chain_agrees_with_counting_in_a_loop(
    train: list[list[int]], history: list[int]
) -> None:
    padded = to_padded([np.array(history, np.int64)], WIDTH)
    found = Markov(split_of(train, 7), 7).scores(padded, np.arange(7)[None])[0]
    followed = [pair for walk in train for pair in pairwise(walk)]
    met = [item for walk in train for item in walk]
    expected = [met.count(item) / (1 + len(met)) for item in range(7)]
    if history:
        expected = [one + followed.count((history[-1], i)) for i, one in enumerate(expected)]
    assert found.tolist() == pytest.approx(expected)


def test_a_few_candidates_of_many_items_score_as_among_all_of_them() -> None:
    rng = np.random.default_rng(0)
    train = split_of(rng.integers(0, 60, (20, 12)).tolist(), 60)
    histories = np.vstack([rng.integers(0, 60, (40, WIDTH)), np.full((1, WIDTH), PADDING)])
    candidates = rng.integers(0, 60, (41, 3))
    for counter in (Markov, CoOccurrence, Popularity):
        made = counter(train, 60)
        everything = made.scores(histories, np.broadcast_to(np.arange(60), (41, 60)))
        expected = np.take_along_axis(everything, candidates, axis=1)
        np.testing.assert_allclose(made.scores(histories, candidates), expected, rtol=1e-12)


@pytest.mark.parametrize("module", ["markov", "co_occurrence"])
def test_rows_scored_in_small_parts_score_the_same(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = RECOMMENDERS[module.replace("_", "-")]
    assert issubclass(counter, Counter)
    test = split_of([[1, 0, 4], [2, 3], [0, 1, 2]], 5)
    whole = counter(TRAIN, 5).scores(test.histories, test.candidates)
    monkeypatch.setattr(f"recipes.recommenders.{module}.HELD_AT_ONCE", 11)
    found = counter(TRAIN, 5).scores(test.histories, test.candidates)
    np.testing.assert_array_equal(found, whole)


# ------------------------------------------------------------------ as methods


def predicted(method: Method, train: Split, test: Split, num_items: int) -> np.ndarray:
    """A method's scores of all rows of `test`."""
    titles = [f"title {item}" for item in range(num_items)]
    run: Any = SimpleNamespace(data=PreparedData(titles, {"train": train, "test": test}))
    rows = EvaluatedRows(
        split="test",
        rows=np.arange(len(test)),
        user_ids=test.user_ids,
        targets=test.targets,
        candidates=test.candidates,
        target_index=test.targets,
    )
    arm = Arm(method.name, method, {}, method.configure(Experiment(), {}))
    found = method.predict(run, arm, 0, rows, EvaluateConfig())
    assert (found.texts, found.gates) == (None, None)
    return found.scores


COUNTERS = [one for one in RECOMMENDERS.values() if issubclass(one, Counter)]


@pytest.mark.parametrize("counter", COUNTERS, ids=lambda counter: counter.name)
def test_a_counter_is_a_method_that_counts_the_train_windows(counter: type[Counter]) -> None:
    test = split_of([[1, 0, 4], [2]], 5)
    expected = counter(TRAIN, 5).scores(test.histories, test.candidates)
    method = CounterMethod(counter)
    np.testing.assert_array_equal(predicted(method, TRAIN, test, 5), expected)
    assert (method.name, method.about) == (counter.name, counter.about)
    with pytest.raises(ValueError, match=f"method {counter.name} has no setting 'rank'"):
        method.configure(Experiment(), {"rank": 4})


def test_a_method_predicts_the_evaluated_rows_alone() -> None:
    test = split_of([[1, 0, 4], [2, 3], [0, 1, 2]], 5)
    data = PreparedData([""] * 5, {"train": TRAIN, "test": test})
    rows = evaluated_rows(data, EvaluateConfig(min_history=1, ks=[1]))
    assert rows.rows.tolist() == [2, 4, 7]
    run: Any = SimpleNamespace(data=data)
    for method in (CounterMethod(CoOccurrence), CounterMethod(Markov)):
        arm = Arm(method.name, method, {}, {"counted": ["train"]})
        found = method.predict(run, arm, 0, rows, EvaluateConfig()).scores
        np.testing.assert_allclose(found, predicted(method, TRAIN, test, 5)[[2, 4, 7]])


# ------------------------------------------------------------------ co-occurrence


def cosine(train: list[list[int]], one: int, other: int) -> float:
    """Between the columns of two items in the matrix of users and items."""
    dot = norm = other_norm = 0
    for walk in train:
        dot += (one in walk) * (other in walk)
        norm += one in walk
        other_norm += other in walk
    return dot / (norm * other_norm) ** 0.5 if dot else 0.0


@given(walks, walks)
def test_co_occurrence_agrees_with_cosines_in_loops(
    train: list[list[int]], test: list[list[int]]
) -> None:
    # Item 7 is met by nobody.
    found = predicted(CounterMethod(CoOccurrence), split_of(train, 8), split_of(test, 8), 8)
    expected = [
        [sum(cosine(train, item, wanted) for item in walk[:at][-WIDTH:]) for wanted in range(8)]
        for walk in test
        for at in range(len(walk))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_co_occurrence_by_hand() -> None:
    # 0 is met by all three users; 1 by two of them, 2 by two, 3 by one.
    found = predicted(CounterMethod(CoOccurrence), TRAIN, split_of([[0, 4]], 5), 5)
    assert found[0].tolist() == [0] * 5  # nothing is known of an empty history
    assert found[1] == pytest.approx([1, 2 / 6**0.5, 2 / 6**0.5, 1 / 3**0.5, 0])


def test_items_whose_cosines_add_up_to_the_same_tie() -> None:
    # Items 3 and 4 share a user with each of 0, 1 and 2, in another order of the users: in floats
    # a + b + c is not always c + b + a.
    shared = [[0, 3], [1, 3], [2, 3], [2, 4], [1, 4], [0, 4]]
    for more in range(1, 30):
        train = split_of([*shared, [0], *[[1]] * more, *[[2]] * (2 * more + 1)], 5)
        (found,) = CoOccurrence(train, 5).scores(np.array([[0, 1, 2]]), np.array([[3, 4]]))
        assert found[0] == found[1] > 0


def test_an_item_of_a_joined_split_is_met_by_the_same_user() -> None:
    walks = [[0, 1, 2], [0, 1, 3], [2, 0]]
    whole = split_of(walks, 4)
    last, by_split = whole.is_last, []
    for own in (~last, last):
        by_split.append(Split(*(getattr(whole, field.name)[own] for field in fields(Split)[:-1])))
    test = split_of([[0, 1, 2, 3]], 4)
    for counter in (Popularity, Markov, CoOccurrence):
        found = counter(joined(by_split), 4).scores(test.histories, test.candidates)
        expected = counter(whole, 4).scores(test.histories, test.candidates)
        np.testing.assert_array_equal(found, expected, counter.name)
