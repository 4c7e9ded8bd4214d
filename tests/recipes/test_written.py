"""A language model that writes exactly the right tokens is right, whatever its tokenizer."""

import numpy as np
import pytest
import torch

from recipes.evaluation.metrics import places_of
from recipes.evaluation.table import predictions_table
from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import PromptInputs
from recipes.prompting.encoding import NO_SLOT, encode_answers, encode_prompts
from recipes.prompting.plain_text import HIDDEN
from recipes.prompting.special_tokens import find_id
from recipes.prompting.written import first_line, written_titles
from recipes.scoring import predictions
from recipes.scoring.rows import EvaluatedRows

from .tokenizers_of_all_kinds import KINDS, SPECIAL, byte_level, unigram

TITLES = [
    "Plain Song",
    "Cafe\u0301 Noir",  # decomposed accent
    "\ufb01ne \u00bd Moon",  # ligature, fraction
    "\uff2e\uff25\uff2f City",  # full width
    "No/Yes",
    "Don't Look",
    "What , Now ?",
    "Two  blanks\nand a line",
    "a; b",
    " \u00dcber Stra\u00dfe ",
    "Ñandú \u0130",
    "42nd (live) [x] - #1!",
]


class Oracle:
    """Writes the tokens of the row's target, then eos and padding."""

    def __init__(self, tokenizer, titles):
        self.tokenizer, self.model, self.rows = tokenizer, self, []
        answers = encode_answers(tokenizer, titles)
        self.answer_ids = [answers.row(item) for item in range(len(titles))]
        self.answer_end = tokenizer.eos_token_id

    def prompt_lengths(self, split, rows):
        return np.ones(len(rows), dtype=np.int64)

    def prompt_inputs(self, split, rows):
        self.rows = list(rows)
        return PromptInputs(torch.zeros(len(rows), 2, 1), torch.ones(len(rows), 2).long(), None)

    lists_candidates = False

    def modulations(self, split, rows):
        return {}

    def gate_weights(self, split, rows):
        return None

    def generate(self, **_):
        answers = [self.answer_ids[row] for row in self.rows]
        longest = max(map(len, answers))
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        return torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers])


def table_of(tokenizer, titles, monkeypatch):
    items = np.arange(len(titles))
    rows = EvaluatedRows(
        split="test",
        rows=items,
        user_ids=items,
        targets=items,
        candidates=np.tile(items, (len(items), 1)),
        target_index=items,
    )
    scores = np.zeros(rows.candidates.shape)
    monkeypatch.setattr(predictions, "score_candidates", lambda *_, **__: scores)
    found = predictions.llm_predictions(
        Oracle(tokenizer, titles), "lora seed 0", rows, EvaluateConfig()
    )
    places = places_of(found.scores, rows.target_index)
    return predictions_table("lora", 0, rows, places, titles, found)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_perfect_generator_is_valid_and_right_in_every_row(kind, monkeypatch):
    table = table_of(KINDS[kind](TITLES), TITLES, monkeypatch)
    assert table["valid"].all()
    assert table["predicted_item"].tolist() == table["target"].tolist()
    assert not table["ambiguous"].any()


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("byte-level, NFC", "Caf\u00e9", "Cafe\u0301"),
        ("Unigram, marker always", "\ufb01ne", "fine"),
        ("WordPiece", "Don't", "don ' t"),
        ("byte-level", "Blue  Moon", "Blue Moon"),
    ],
)
def test_titles_that_are_written_alike_are_ambiguous_and_this_is_told(
    kind, one, other, monkeypatch
):
    titles = [one, other, "Another"]
    table = table_of(KINDS[kind](titles), titles, monkeypatch)
    assert table["valid"].tolist() == [False, False, True]
    assert table["ambiguous"].tolist() == [True, True, False]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_title_has_the_same_tokens_in_the_prompt_and_as_an_answer(kind):
    tokenizer = KINDS[kind](TITLES)
    answers = encode_answers(tokenizer, TITLES)
    items = np.arange(len(TITLES))[None]
    prompts = encode_prompts(tokenizer, TITLES, items[:, :3], items)
    ids = prompts.input_ids.row(0)
    for place, item in enumerate(prompts.slot_items.row(0)):
        if item != NO_SLOT:
            own = answers.row(item)[:-1]
            assert ids[place - len(own) : place] == own
    eos, bos = tokenizer.eos_token_id, find_id(tokenizer, "bos")
    for item in range(len(TITLES)):
        own = answers.row(item)
        assert own.count(eos) == 1 and own[-1] == eos and bos not in own[:-1]
    assert bos is None or (ids[0] == bos and ids.count(bos) == 1)


SPELLED = [
    "Silver Road",
    "</s>",
    "The <s> Files",
    "<unk>",
    "<pad> Thai",
    "<|im_end|>",
    "<image>",
    "\uff1c/s\uff1e",  # full width: NFKC makes it "</s>"
    "<S>",
    "a</s>b",
]
MARKUP = [*SPECIAL, "<|im_end|>", "<image>"]


@pytest.mark.parametrize("make", [unigram, byte_level])
def test_no_special_token_comes_from_a_titles_text(make):
    characters = "< / s > u n k p a d | i m _ e g"
    tokenizer = make([*SPELLED, characters], special=MARKUP)
    answers = encode_answers(tokenizer, SPELLED)
    history = np.arange(len(SPELLED))[None]
    prompts = encode_prompts(tokenizer, SPELLED, history, history)
    slots = np.array(prompts.slot_items.row(0))
    text_of_prompt = np.array(prompts.input_ids.row(0))[slots == NO_SLOT]
    assert not set(text_of_prompt[1:].tolist()) & set(range(len(MARKUP)))
    written = written_titles(tokenizer, [answers.row(item) for item in range(len(SPELLED))])
    for item, title in enumerate(SPELLED):
        assert not set(answers.row(item)[:-1]) & set(range(len(MARKUP)))
        if make is byte_level:
            assert written[item] == title
        elif not title.startswith("\uff1c"):
            assert written[item].replace(" ", "") == title.replace(" ", "")


def test_an_added_token_that_looks_like_markup_is_text_in_a_title_too():
    tokenizer = byte_level(TITLES)
    tokenizer.add_tokens(["<think>", "Song"])
    ids = encode_answers(tokenizer, ["<think> twice", "Plain Song"])
    think, song = tokenizer.convert_tokens_to_ids(["<think>", "Song"])
    assert think not in ids.row(0) and song in ids.row(1)
    assert tokenizer.decode(ids.row(0)[:-1]).strip() == "<think> twice"


def test_an_unknown_character_is_still_unknown():
    tokenizer = unigram(TITLES)
    ids = encode_answers(tokenizer, ["Plain \u96e8"]).row(0)
    assert ids.count(tokenizer.unk_token_id) == 1


def test_a_title_that_decodes_to_nothing_is_refused():
    tokenizer = unigram(TITLES)
    answers = encode_answers(tokenizer, ["Plain Song", "\u96e8"])
    with pytest.raises(ValueError, match="title of item 1 cannot be written .* another adapt.llm"):
        written_titles(tokenizer, [answers.row(0), answers.row(1)])


@pytest.mark.parametrize("mark", ["\ue000", "\ue001", "\ue002", HIDDEN])
def test_marks_in_titles_are_refused(mark):
    with pytest.raises(ValueError, match="of item 1 contains a private-use character"):
        encode_answers(byte_level(TITLES), ["Plain", f"So{mark}ng"])


@pytest.mark.parametrize("title", ["", " \n\t", "\u3000"])
def test_a_blank_title_is_refused(title):
    with pytest.raises(ValueError, match="the title of item 1 is blank: give every item a title"):
        encode_answers(byte_level(TITLES), ["Plain", title])


def test_the_first_line_of_the_stripped_text_is_kept():
    assert first_line("\n  Blue Train \nKind of Blue") == "Blue Train"
    assert first_line(" \n ") == ""
