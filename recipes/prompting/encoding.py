"""Prompts and answers as token ids, all rows of a split at once.

A prompt is cut at its slots, and each piece of text is tokenised on its own, without special
tokens. A slot takes exactly one position: a plain token of the existing vocabulary (the paper's
placeholder; the vocabulary is never resized) and an entry that says what belongs there. Where the
answer begins follows from lengths, not from what a tokenizer makes of a pair of texts, so neither
its special tokens nor its merges can move a label.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from recipes.data.ragged import PADDING
from recipes.prompting.prompts import SLOT, USER_SLOT, check_titles, hybrid_prompt, slot_order
from recipes.prompting.ragged import Ragged
from recipes.prompting.special_tokens import find_id, placeholder_id, required_id

NO_SLOT = -1
USER = -2
_SLOTS = re.compile(f"([{SLOT}{USER_SLOT}])")


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts, by row."""

    input_ids: Ragged
    slot_items: Ragged
    """Shaped like `input_ids`: an item id, `USER`, or `NO_SLOT`."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    histories: NDArray[np.integer],
    candidates: NDArray[np.integer],
    *,
    user_slot: bool = False,
) -> EncodedPrompts:
    """Encode one prompt for each row.

    Args:
        tokenizer: Of the language model; a bos token is put in front if it has one.
        titles: By item id.
        histories: [n, h] item ids, oldest first, left-padded with -1: the items a prompt shows.
        candidates: [n, c] item ids.
        user_slot: See `hybrid_prompt`.

    Raises:
        ValueError: A title contains a slot character.
    """
    check_titles(titles)

    def named(items: list[int]) -> list[str]:
        return [titles[item] for item in items if item != PADDING]

    texts = (
        hybrid_prompt(named(history), named(options), user_slot=user_slot)
        for history, options in zip(histories.tolist(), candidates.tolist(), strict=True)
    )
    shown = slot_order(histories, candidates)
    return _encode_texts(tokenizer, texts, shown[shown != PADDING])


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], items: NDArray[np.integer]
) -> EncodedPrompts:
    """Tokenise prompts; `items` are those of the `SLOT`s in the order in which they occur."""
    # Each distinct piece has a code and is tokenised once. The empty piece, code 0, stands for bos.
    codes = {"": 0, SLOT: 1, USER_SLOT: 2}
    rows = [
        [0, *(codes.setdefault(piece, len(codes)) for piece in _SLOTS.split(text) if piece)]
        for text in texts
    ]
    bos = find_id(tokenizer, "bos")
    slot = [placeholder_id(tokenizer)]
    opening = [] if bos is None else [bos]
    table = Ragged.from_rows([opening, slot, slot, *_tokenised(tokenizer, list(codes)[3:])])

    flat = Ragged.from_rows(rows)
    tokens = table.take(flat.values)
    starts = tokens.offsets[:-1]
    slot_items = np.full(len(tokens.values), NO_SLOT, dtype=np.int32)
    slot_items[starts[flat.values == codes[SLOT]]] = items
    slot_items[starts[flat.values == codes[USER_SLOT]]] = USER
    input_ids = tokens.regrouped(flat.lengths)
    return EncodedPrompts(input_ids, Ragged(slot_items, input_ids.offsets))


def encode_answers(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> Ragged:
    """Token ids of each title as an answer, closed by eos; by item id.

    Raises:
        ValueError: The tokenizer has no eos token.
    """
    eos = required_id(tokenizer, "eos")
    check_titles(titles)
    lead = "" if _opens_words_itself(tokenizer) else " "
    tokens = _tokenised(tokenizer, [lead + title for title in titles])
    return Ragged.from_rows([[*ids, eos] for ids in tokens])


def _opens_words_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets the tokens of its mid-sentence form without a blank in front of it.

    True for tokenizers that put a word marker before every text (SentencePiece) or ignore blanks;
    with a blank of ours they would see two.
    """
    whole, separator, word = _tokenised(tokenizer, ["; name", ";", "name"])
    return whole == separator + word


def _tokenised(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # A title that spells a special token, such as "</s>", is text like any other.
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return encoded["input_ids"]
