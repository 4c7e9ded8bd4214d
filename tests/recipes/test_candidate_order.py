"""What the order of a prompt's candidates changes; prompts that list other candidates or none."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from recipes.data.tables import PreparedData, Split
from recipes.evaluation.evaluate import check_config
from recipes.experiment import EvaluateConfig
from recipes.prompting import store as storing
from recipes.prompting.encoding import encode_prompts
from recipes.prompting.store import PromptStore
from recipes.scoring import order
from recipes.scoring.order import order_changes
from recipes.scoring.rows import evaluated_rows

from .tokenizers_of_all_kinds import byte_level

TITLES = [f"Title {letter}" for letter in "abcdefgh"]
ROWS = 12


def data() -> PreparedData:
    generator = np.random.default_rng(0)
    candidates = np.stack([generator.permutation(8)[:5] for _ in range(ROWS)])
    split = Split(
        user_ids=np.arange(ROWS) // 2,
        histories=np.stack([generator.permutation(8)[:3] for _ in range(ROWS)]),
        history_lengths=np.full(ROWS, 3),
        targets=candidates[:, 2],
        candidates=candidates,
        is_last=np.ones(ROWS, dtype=bool),
    )
    return PreparedData(TITLES, {"test": split})


class Listed:
    """Remembers which candidates its prompts list."""

    lists_candidates = True

    def __init__(self, candidates: np.ndarray) -> None:
        self.candidates = candidates

    def prompt_lengths(self, split, rows):
        return np.ones(len(rows), dtype=np.int64)

    @contextmanager
    def listing(self, split, rows, candidates):
        before = self.candidates.copy()
        self.candidates[rows] = candidates
        yield
        self.candidates = before


def by_place(adapted, split, rows, lengths, candidates, **_):
    """A model that chooses what is listed first."""
    listed = adapted.candidates[rows]
    return -(listed[:, None, :] == candidates[:, :, None]).argmax(axis=2).astype(float)


def by_item(adapted, split, rows, lengths, candidates, **_):
    """A model that does not care."""
    return candidates.astype(float)


def changes(monkeypatch, scorer, **config):
    monkeypatch.setattr(order, "score_candidates", scorer)
    rows = evaluated_rows(data(), EvaluateConfig(rows="all", ks=[1]))
    adapted = Listed(data().split("test").candidates)
    scores = scorer(adapted, "test", rows.rows, None, rows.candidates)
    settings = EvaluateConfig(**config)
    return rows, adapted, order_changes(adapted, "lora", rows, scores, settings)


def test_a_model_that_chooses_by_place_changes_with_the_order(monkeypatch):
    rows, adapted, found = changes(monkeypatch, by_place, order_rows=99, order_permutations=40)
    assert found.rows.tolist() == rows.rows.tolist()
    assert found.user_ids.tolist() == rows.user_ids.tolist()
    assert abs(found.changed.mean() - 4 / 5) < 0.05  # one order in five leaves the first there
    assert np.array_equal(adapted.candidates, data().split("test").candidates)


def test_a_model_that_reads_items_alone_never_changes(monkeypatch):
    _, _, found = changes(monkeypatch, by_item, order_rows=5, order_permutations=3)
    assert found.rows.tolist() == [0, 3, 6, 8, 11]
    assert found.changed.tolist() == [0] * 5


def test_rows_without_finite_scores_are_not_tried(monkeypatch):
    monkeypatch.setattr(order, "score_candidates", by_item)
    rows = evaluated_rows(data(), EvaluateConfig(rows="all", ks=[1]))
    scores = rows.candidates.astype(float)
    scores[2:, 1] = np.nan
    adapted = Listed(rows.candidates.copy())
    found = order_changes(adapted, "lora", rows, scores, EvaluateConfig())
    assert found.rows.tolist() == [0, 1]


def test_answers_are_written_again_and_compared_but_for_case(monkeypatch):
    monkeypatch.setattr(order, "score_candidates", by_item)
    rows = evaluated_rows(data(), EvaluateConfig(rows="all", ks=[1]))
    adapted, asked = Listed(data().split("test").candidates), []

    def write(tried):
        asked.append(adapted.candidates[tried.rows].copy())
        return [["A  title ", "another", ""][row % 3] for row in tried.rows]

    texts = ["a Title"] * len(rows)
    config = EvaluateConfig(order_rows=99, order_permutations=2)
    scores = rows.candidates.astype(float)
    found = order_changes(adapted, "lora", rows, scores, config, texts, write)
    assert found.answers.tolist() == [0, 1, 1] * 4 and not found.changed.any()
    assert len(asked) == 2
    for listed in asked:  # written while the prompts list the other order
        assert not np.array_equal(listed, rows.candidates)
        assert np.array_equal(np.sort(listed), np.sort(rows.candidates))
    assert order_changes(adapted, "lora", rows, scores, config).answers is None


def test_it_can_be_turned_off_and_one_row_is_no_sample(monkeypatch):
    assert changes(monkeypatch, by_place, order_rows=0)[2] is None
    with pytest.raises(ValueError, match="order_rows=1 gives no interval"):
        check_config(EvaluateConfig(order_rows=1))


def test_a_store_lists_other_candidates_and_stays_as_it_is(monkeypatch):
    tables, tokenizer = data(), byte_level(TITLES)
    store = PromptStore(tokenizer, tables)
    before = store.prompts("test", 3, user_slot=False)
    split = tables.split("test")
    turned = split.candidates[[1, 4], ::-1]
    encoded, original = [], storing.encode_prompts

    def counted(tokenizer, titles, histories, *given, **settings):
        encoded.append(len(histories))
        return original(tokenizer, titles, histories, *given, **settings)

    monkeypatch.setattr(storing, "encode_prompts", counted)
    other = store.listing("test", np.array([1, 4]), turned)
    found = other.prompts("test", 3, user_slot=False)
    assert other.prompts("test", 3, user_slot=False) is found and encoded == [2]
    changed = split.candidates.copy()
    changed[[1, 4]] = turned
    wanted = encode_prompts(tokenizer, TITLES, split.histories, changed)
    for row in range(ROWS):
        assert found.input_ids.row(row) == wanted.input_ids.row(row)
        assert found.slot_items.row(row) == wanted.slot_items.row(row)
        same = found.input_ids.row(row) == before.input_ids.row(row)
        assert same == (row not in (1, 4))
    assert store.prompts("test", 3, user_slot=False) is before
    unlisted = other.prompts("test", 3, user_slot=False, listed=False)
    assert unlisted is store.prompts("test", 3, user_slot=False, listed=False)
    assert other.answer_ids == store.answer_ids


def test_a_store_has_prompts_without_candidates_in_every_epoch():
    tables, tokenizer = data(), byte_level(TITLES)
    tables = replace(tables, splits={"train": tables.split("test")})
    store = PromptStore(tokenizer, tables)
    found = store.prompts("train", 3, user_slot=False, listed=False)
    shown = [tokenizer.decode(found.input_ids.row(row)) for row in range(ROWS)]
    assert not any("Pick" in text for text in shown) and all("Next:" in text for text in shown)
    assert store.redrawn(4, 3, False, True, False) is found
