import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.prompting.collator import TrainingCollator, prompt_batch
from recipes.prompting.encoding import NO_SLOT, USER, encode_answers, encode_prompts
from recipes.prompting.frame import frame_of
from recipes.prompting.prompts import SLOT, USER_SLOT, hybrid_prompt
from recipes.prompting.special_tokens import find_id, placeholder_id

TITLES = ["Heat", "Big Fish", "Jaws", "La Jetée", "</s>"]
HISTORIES = np.array([[-1, 0], [3, 1]])
CANDIDATES = np.array([[1, 2], [2, 4]])


def byte_level() -> PreTrainedTokenizerFast:
    """Like Llama 3 and GPT-2: the blank belongs to the word; here with a bos."""
    return new_tokenizer(TITLES, 400)


def marker_before_every_text() -> PreTrainedTokenizerFast:
    """Like Llama 2: a word marker before every text, and a template that adds a bos by itself."""
    text = "Pick the next one from:\nChosen so far, oldest first;▁" + "".join(TITLES)
    characters = sorted(set(text))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: 3 + i for i, c in enumerate(characters)}
    merges = [("▁", "H"), ("▁H", "e")]
    vocabulary |= {"▁H": len(vocabulary), "▁He": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def words_only() -> PreTrainedTokenizerFast:
    """Whole words, blanks ignored; without a bos and without unk, so pad holds a slot's place."""
    words = ["[pad]", "[end]", "chosen", "so", "far", ",", "oldest", "first", ":", "pick", "the"]
    words += ["next", "one", "from", ";", "heat", "big", "fish", "jaws", "la", "jetée", "</", "s"]
    words += [">", "?"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", eos_token="[end]")


TOKENIZERS = [byte_level, marker_before_every_text, words_only]


@pytest.fixture(params=TOKENIZERS, ids=lambda make: make.__name__)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return request.param()


def test_a_prompt_becomes_these_ids_and_slots():
    prompts = encode_prompts(words_only(), TITLES, HISTORIES[:1], CANDIDATES[:1], user_slot=True)
    # pick the next one from : big fish [slot] ; jaws [slot] chosen so far , oldest first : heat ...
    assert prompts.input_ids.row(0) == [
        *[9, 10, 11, 12, 13, 8, 16, 17, 0, 14, 18, 0],
        *[2, 3, 4, 5, 6, 7, 8, 15, 0],
        *[0, 11, 8],
    ]
    assert prompts.slot_items.row(0) == [
        *[NO_SLOT] * 8,
        *[1, NO_SLOT, NO_SLOT, 2],
        *[NO_SLOT] * 8,
        0,
        *[USER, NO_SLOT, NO_SLOT],
    ]


def piece_by_piece(tokenizer, history, candidates, user_slot):
    """One row: its prompt as a string, cut at the slots, each piece tokenised by itself."""
    named = [[TITLES[item] for item in items if item >= 0] for items in (history, candidates)]
    slots, ids, filled = [i for i in (*candidates, *history) if i >= 0], [], []
    if (bos := find_id(tokenizer, "bos")) is not None:
        ids, filled = [bos], [NO_SLOT]
    for piece in re.split(f"([{SLOT}{USER_SLOT}])", hybrid_prompt(*named, user_slot=user_slot)):
        if piece in (SLOT, USER_SLOT):
            ids.append(frame_of(tokenizer).placeholder)
            filled.append(slots.pop(0) if piece == SLOT else USER)
        elif piece:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            tokens = tokenizer(piece, **options)["input_ids"]
            ids += tokens
            filled += [NO_SLOT] * len(tokens)
    return ids, filled


@pytest.mark.parametrize("user_slot", [False, True])
def test_all_rows_at_once_equal_each_row_piece_by_piece(tokenizer, user_slot):
    random = np.random.default_rng(0)
    histories, candidates = random.integers(5, size=(40, 3)), random.integers(5, size=(40, 4))
    histories[np.arange(3) < random.integers(4, size=(40, 1))] = -1  # empty ones among them
    prompts = encode_prompts(tokenizer, TITLES, histories, candidates, user_slot=user_slot)
    for row in range(40):
        wanted = piece_by_piece(tokenizer, histories[row], candidates[row], user_slot)
        assert (prompts.input_ids.row(row), prompts.slot_items.row(row)) == wanted


def refuse(*args, **kwargs):
    raise AssertionError("tokenised once more")


def test_texts_are_tokenised_once_and_then_read_from_disk(tokenizer, tmp_path, monkeypatch):
    rows = (tokenizer, TITLES, HISTORIES, CANDIDATES)
    plain, made = encode_prompts(*rows), encode_prompts(*rows, cache=tmp_path)
    monkeypatch.setattr(type(tokenizer), "__call__", refuse)
    found = encode_prompts(*rows, cache=tmp_path)
    for prompts in (made, found):
        for name in ("input_ids", "slot_items"):
            for part in ("values", "offsets"):
                wanted = getattr(getattr(plain, name), part)
                np.testing.assert_array_equal(
                    getattr(getattr(prompts, name), part), wanted, strict=True
                )
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_tokens_on_disk_are_those_of_the_same_tokenizer_and_texts_only(tmp_path):
    one, other = byte_level(), new_tokenizer(["Jaws Jaws", "Heat Heat"] * 9, 400)
    for tokenizer in (one, other):
        for titles in (TITLES, TITLES[::-1]):
            found = encode_answers(tokenizer, titles, cache=tmp_path)
            assert found.values.tolist() == encode_answers(tokenizer, titles).values.tolist()
    assert len(list(tmp_path.iterdir())) == 4
    one.add_tokens("Heat")  # a tokenizer that is changed after it was loaded
    assert one.convert_tokens_to_ids("Heat") in encode_answers(one, TITLES, cache=tmp_path).row(0)
    assert len(list(tmp_path.iterdir())) == 5


def test_each_shown_item_has_one_slot_and_a_slot_is_one_placeholder(tokenizer):
    prompts = encode_prompts(tokenizer, TITLES, HISTORIES, CANDIDATES)
    slots = [[item for item in prompts.slot_items.row(row) if item != NO_SLOT] for row in range(2)]
    assert slots == [[1, 2, 0], [2, 4, 3, 1]]
    at_slots = prompts.input_ids.values[prompts.slot_items.values != NO_SLOT]
    assert set(at_slots.tolist()) == {frame_of(tokenizer).placeholder}


def test_each_slot_stands_behind_its_own_title(tokenizer):
    prompts = encode_prompts(tokenizer, TITLES, HISTORIES, CANDIDATES)
    answers = encode_answers(tokenizer, TITLES)
    for row in range(2):
        ids, items = prompts.input_ids.row(row), prompts.slot_items.row(row)
        for position, item in enumerate(items):
            if item != NO_SLOT:
                title = answers.row(item)[:-1]  # the same tokens in the prompt and as an answer
                assert ids[position - len(title) : position] == title


def test_a_bos_opens_a_prompt_once_if_the_tokenizer_has_one(tokenizer):
    ids = encode_prompts(tokenizer, TITLES, HISTORIES, CANDIDATES).input_ids.row(1)
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == (0 if bos is None else 1)
    assert bos is None or ids[0] == bos


def test_an_answer_is_the_title_and_one_eos(tokenizer):
    answers = encode_answers(tokenizer, TITLES)
    for item, title in enumerate(TITLES):
        ids = answers.row(item)
        assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[:-1]).strip()
        assert text.replace(" ", "").lower() == title.replace(" ", "").lower()


def test_a_tokenizer_that_adds_its_own_word_marker_sees_no_second_blank():
    tokenizer = marker_before_every_text()
    heat = tokenizer.convert_ids_to_tokens(encode_answers(tokenizer, TITLES).row(0))
    assert heat == ["▁He", "a", "t", "</s>"]


def test_labels_are_the_answers_and_padding_is_on_the_left():
    tokenizer = words_only()
    collator = TrainingCollator(
        prompts=encode_prompts(tokenizer, TITLES, np.array([[-1, 0], [0, 2]]), CANDIDATES[:, :1]),
        answers=encode_answers(tokenizer, TITLES),
        rows=np.array([0, 1]),
        targets=np.array([2, 1]),
        pad_id=0,
    )
    batch = collator([0, 1])
    options, history, cue = [9, 10, 11, 12, 13, 8], [2, 3, 4, 5, 6, 7, 8], [11, 8]
    assert batch["input_ids"].tolist() == [
        [0, 0, 0, *options, 16, 17, 0, *history, 15, 0, *cue, 18, 1],
        [*options, 18, 0, *history, 15, 0, 14, 18, 0, *cue, 16, 17, 1],
    ]
    assert batch["labels"].tolist() == [[-100, 18, 1], [16, 17, 1]]
    assert batch["attention_mask"].tolist() == [[0] * 3 + [1] * 22, [1] * 25]
    assert batch["slot_items"].tolist() == [
        [*[-1] * 11, 1, *[-1] * 8, 0, *[-1] * 4],
        [*[-1] * 7, 2, *[-1] * 8, 0, -1, -1, 2, *[-1] * 5],
    ]
    assert "users" not in batch


def test_a_prompt_batch_is_the_training_batch_without_answers():
    tokenizer = words_only()
    prompts = encode_prompts(tokenizer, TITLES, HISTORIES, CANDIDATES)
    batch = prompt_batch(prompts, np.array([1, 0]), pad_id=0)
    for line, row in enumerate([1, 0]):
        used = batch["attention_mask"][line].bool()
        assert batch["input_ids"][line][used].tolist() == prompts.input_ids.row(row)
        assert batch["slot_items"][line][used].tolist() == prompts.slot_items.row(row)
        assert used.tolist() == sorted(used.tolist())  # False first: padding on the left


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = words_only()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos token: choose another"):
        encode_answers(tokenizer, TITLES)


def test_the_placeholder_is_unk_else_pad_else_eos():
    tokenizer = byte_level()
    found = [placeholder_id(tokenizer)]
    for name in ("unk_token", "pad_token"):
        setattr(tokenizer, name, None)
        found.append(placeholder_id(tokenizer))
    assert tokenizer.convert_ids_to_tokens(found) == ["<unk>", "<pad>", "</s>"]
