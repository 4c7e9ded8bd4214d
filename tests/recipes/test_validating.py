"""HitRatio@1 on validation, by hand, and the rows on which it is measured."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.experiment import AdapterSettings, Experiment
from recipes.llm.divergence import DivergenceError
from recipes.methods import validating
from recipes.methods.validating import (
    expected_hit_ratio,
    hit_ratio_on_validation,
    validation_rows,
)

NAN, INF = np.nan, np.inf
ROWS = [
    ([2.0, 1.0, 0.0], 0, 1.0),
    ([2.0, 3.0, 0.0], 0, 0.0),
    ([1.0, 1.0, 0.0], 1, 1 / 2),
    ([1.0, 1.0, 1.0], 2, 1 / 3),
    ([1.0, -INF, 0.0], 0, 0.0),
    ([NAN, 1.0, 0.0], 1, 0.0),
    ([NAN, 1.0, 0.0], 0, 0.0),
    ([NAN, NAN, NAN], 0, 0.0),
]


@pytest.mark.parametrize(("scores", "target", "hit"), ROWS, ids=[str(row[:2]) for row in ROWS])
def test_a_row_alone(scores: list[float], target: int, hit: float):
    assert expected_hit_ratio(np.array([scores]), np.array([[target]])) == hit


def test_a_row_with_a_nan_costs_one_row_and_not_the_figure():
    scores, targets = np.array([row[0] for row in ROWS]), np.array([[row[1]] for row in ROWS])
    assert expected_hit_ratio(scores, targets) == pytest.approx((1 + 1 / 2 + 1 / 3) / 8)


def run(*lengths: int) -> Any:
    """A run whose validation users have one window each, with histories of these lengths."""
    histories = np.full((len(lengths), 5), PADDING)
    for line, length in zip(histories, lengths, strict=True):
        line[5 - length :] = 0
    users, last = np.arange(len(lengths)), np.ones(len(lengths), bool)
    candidates = np.tile([0, 1], (len(lengths), 1))
    split = Split(users, histories, np.array(lengths), users * 0, candidates, last)
    data = PreparedData(["a", "b"], dict.fromkeys(("train", "val", "test"), split))
    return SimpleNamespace(data=data, experiment=Experiment(), prompts=None)


def test_validation_needs_two_users_with_a_history_long_enough():
    assert validation_rows(run(3, 1, 4), AdapterSettings()).rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"1 users have a history of adapt\.min_history=3 items"):
        validation_rows(run(3, 1), AdapterSettings())


def test_an_adapter_without_a_finite_row_has_diverged(monkeypatch: pytest.MonkeyPatch):
    plan = SimpleNamespace(
        label="lora seed 0", settings=AdapterSettings(), user_slot=False, hybrid_at_test=True
    )
    adapted = SimpleNamespace(prompt_lengths=lambda split, rows: np.ones(len(rows)))
    monkeypatch.setattr(validating, "AdaptedModel", lambda *given, **named: adapted)
    scores = np.array([[NAN, 0.0], [1.0, 0.0]])
    monkeypatch.setattr(validating, "score_candidates", lambda *given, **named: scores)
    measure = hit_ratio_on_validation(run(3, 3), plan, None)  # type: ignore[arg-type]
    assert measure(None) == 1 / 2  # type: ignore[arg-type]
    scores[1, 1] = NAN
    with pytest.raises(DivergenceError, match=r"lora seed 0 has diverged.*learning_rate=0\.001"):
        measure(None)  # type: ignore[arg-type]
