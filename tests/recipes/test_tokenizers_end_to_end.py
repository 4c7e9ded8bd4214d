"""A tiny model behind every kind of tokenizer: what it writes by beams is what it ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.evaluation.metrics import places_or_last
from recipes.evaluation.table import predictions_table
from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import UnadaptedModel
from recipes.prompting.store import PromptStore
from recipes.scoring.masking import Masked
from recipes.scoring.predictions import beam_scores, llm_predictions
from recipes.scoring.rows import evaluated_rows

from .language_models import SMALL, tiny_model
from .test_frame import CHATML, INST, with_turns
from .test_written import TITLES
from .tokenizers_of_all_kinds import KINDS, byte_level, unigram

CHOICES = 4
CHATS = {
    f"{name}, {turns}": (make, template)
    for name, make in {"byte-level": byte_level, "Unigram": unigram}.items()
    for turns, template in {"a system turn": CHATML, "no system turn": INST}.items()
}
ALL = {kind: (make, None) for kind, make in KINDS.items()} | CHATS


def data() -> PreparedData:
    """Three users' rows, of no history, one item and three."""
    generator = np.random.default_rng(0)
    candidates = np.stack([generator.permutation(len(TITLES))[:CHOICES] for _ in range(3)])
    histories = [[PADDING] * 3, [PADDING, PADDING, 2], [5, 1, 3]]
    split = Split(
        user_ids=np.arange(3),
        histories=np.array(histories),
        history_lengths=np.array([0, 1, 3]),
        targets=candidates[:, 1],
        candidates=candidates,
        is_last=np.ones(3, dtype=bool),
    )
    return PreparedData(TITLES, {"test": split})


def adapted_of(kind: str, tables: PreparedData) -> UnadaptedModel:
    make, template = ALL[kind]
    tokenizer = make(tables.titles)
    if template is not None:
        tokenizer = with_turns(tokenizer, template)
    if tokenizer.pad_token is None:  # as the loader of language models does
        tokenizer.pad_token = tokenizer.eos_token
    model = tiny_model("llama", len(tokenizer), **SMALL, pad_token_id=tokenizer.pad_token_id)
    store = PromptStore(tokenizer, tables, chat_template="auto")
    return UnadaptedModel(SimpleNamespace(base=model), store, prompt_history=2)


@torch.no_grad()
def log_prob(adapted: UnadaptedModel, row: int, answer: list[int]) -> float:
    """Of an answer after a row's prompt, from the logits of the whole sequence."""
    prompt = adapted.prompts("test").input_ids.row(row)
    logits = adapted.model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    steps = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
    return float(steps.gather(1, torch.tensor(answer)[:, None]).sum())


WHOLE = [*TITLES, "Plain", "Plain Song", "</s>", "Plain </s> Song", "PLAIN SONG", "42"]
"""Among them a title twice, beginnings of others, other case, and one that spells the end."""


@pytest.mark.parametrize("kind", list(ALL))
def test_the_beams_of_a_catalogue_are_its_titles_by_their_whole_log_probability(kind):
    tables = data()
    tables = PreparedData(WHOLE, tables.splits)
    adapted, count = adapted_of(kind, tables), len(WHOLE)
    answers = [tuple(ids) for ids in adapted.answer_ids]
    assert len(set(answers)) < count
    config = EvaluateConfig(
        min_history=0, ks=[1], candidates="catalogue", decoding="candidates", num_beams=count
    )
    rows = evaluated_rows(tables, config)
    found = beam_scores(adapted, kind, rows, Masked.nothing(), config)
    for place, row in enumerate(rows.rows.tolist()):
        wanted = np.array([log_prob(adapted, row, list(ids)) for ids in answers])
        distinct = sorted({-score for score in found[place]})
        assert len(distinct) == len(set(answers)) and 0 not in distinct
        ordered = wanted[np.argsort(-found[place], kind="stable")]
        assert (np.diff(ordered) < 1e-4).all()
        for ids, score in zip(answers, found[place], strict=True):
            assert score == found[place][answers.index(ids)]


@pytest.mark.parametrize("kind", list(ALL))
def test_as_many_beams_as_candidates_are_the_ranking_and_all_of_them_are_valid(kind):
    tables = data()
    adapted = adapted_of(kind, tables)
    config = EvaluateConfig(
        min_history=0,
        ks=[1],
        decoding="candidates",
        num_beams=CHOICES,
        order_rows=3,
        batch_size=8,
    )
    rows = evaluated_rows(tables, config)
    found = llm_predictions(adapted, kind, rows, config)
    places = places_or_last(found.scores, rows.target_index)
    table = predictions_table("zero-shot", 0, rows, places, TITLES, found)
    best_first = np.take_along_axis(rows.candidates, (-found.scores).argsort(axis=1), axis=1)
    assert table["beam_items"].tolist() == best_first.tolist()
    assert table["beam_place"].tolist() == places.better.tolist()
    assert table["predicted_item"].tolist() == best_first[:, 0].tolist()
    assert table["valid"].all() and table["invalid"].isna().all()
    assert found.order is not None and set(found.order.changed) <= {0.0, 1.0}
