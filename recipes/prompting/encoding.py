"""Encodes prompts and answers as token ids, all rows of a split at once.

A prompt is cut at its slots, and each piece of text is tokenised on its own, without special
tokens. A frame (`frame.py`) stands around prompt and answer. A slot takes exactly one position. It
consists of a token of the existing vocabulary (the paper's placeholder; the vocabulary is never
resized) and of an entry that says what belongs there.

The answer's first position is computed from lengths. It does not depend on how a tokenizer treats a
pair of texts, so neither special tokens nor merges can shift a label.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from recipes.data.padding import PADDING
from recipes.prompting.frame import Frame, frame_of
from recipes.prompting.prompts import (
    SLOT,
    TITLE,
    USER_SLOT,
    hybrid_prompt,
    one_line_titles,
    slot_order,
)
from recipes.prompting.ragged import Ragged
from recipes.prompting.tokens import tokenised

NO_SLOT = -1
USER = -2
_SLOTS = re.compile(f"([{SLOT}{USER_SLOT}])")


@dataclass(frozen=True)
class EncodedPrompts:
    """The prompts of n rows."""

    input_ids: Ragged
    slot_items: Ragged
    """What belongs at each position of `input_ids`: an item id, `USER`, or `NO_SLOT`."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    histories: NDArray[np.integer],
    candidates: NDArray[np.integer],
    *,
    user_slot: bool = False,
    slots: bool = True,
    frame: Frame | None = None,
    cache: Path | None = None,
) -> EncodedPrompts:
    """Encode one prompt for each row.

    Args:
        tokenizer: The language model's tokenizer.
        titles: Title of each item, by item id.
        histories: [n, h], item ids that a prompt shows, oldest first, left-padded with -1.
        candidates: [n, c], item ids.
        user_slot: See `hybrid_prompt`.
        slots: False leaves out the slots after titles; without a user slot all is plain text.
        frame: What stands around a prompt; None stands for the bos token, if there is one.
        cache: See `tokenised`.

    Raises:
        ValueError: See `one_line_titles` and `tokenised`.
    """
    titles = one_line_titles(titles)
    pieces, rows = _pieces(histories, candidates, user_slot)
    shown = slot_order(histories, candidates)
    items = shown[shown != PADDING]

    with_title = np.array([TITLE in piece for piece in pieces])
    texts = rows.values.astype(np.int64) * len(titles)
    texts[with_title[rows.values]] += items
    frame = frame or frame_of(tokenizer, cache=cache)
    placeholder = [frame.placeholder]
    no_text = [frame.opening, placeholder if slots else [], placeholder, frame.closing]
    tokens = _tokens_of(tokenizer, pieces, titles, texts, no_text, cache)
    starts = tokens.offsets[:-1]
    slot_items = np.full(len(tokens.values), NO_SLOT, dtype=np.int32)
    if slots:
        slot_items[starts[rows.values == pieces.index(SLOT)]] = items
    slot_items[starts[rows.values == pieces.index(USER_SLOT)]] = USER
    input_ids = tokens.regrouped(rows.lengths)
    return EncodedPrompts(input_ids, Ragged(slot_items, input_ids.offsets))


_OPENING, _CLOSING = "", "\ue004"
_NO_TEXT = [_OPENING, SLOT, USER_SLOT, _CLOSING]
"""Pieces that are not tokenised: the slots, and what a frame puts around a prompt."""


def _pieces(
    histories: NDArray[np.integer], candidates: NDArray[np.integer], user_slot: bool
) -> tuple[list[str], Ragged]:
    """The distinct pieces of all prompts, `_NO_TEXT` first, and each row as indices of pieces.

    A piece has `TITLE` in place of a title, so prompts with equally many titles have the same.
    """
    shown = [(items != PADDING).sum(axis=1) for items in (histories, candidates)]
    kinds, kind_of_row = np.unique(np.stack(shown, axis=1), axis=0, return_inverse=True)
    codes = {piece: code for code, piece in enumerate(_NO_TEXT)}
    layouts = []
    for num_history, num_candidates in kinds.tolist():
        titles = [TITLE] * num_history, [TITLE] * num_candidates
        cut = _SLOTS.split(hybrid_prompt(*titles, user_slot=user_slot))
        inner = [codes.setdefault(piece, len(codes)) for piece in cut if piece]
        layouts.append([codes[_OPENING], *inner, codes[_CLOSING]])
    return list(codes), Ragged.from_rows(layouts).take(kind_of_row.ravel())


def _tokens_of(
    tokenizer: PreTrainedTokenizerBase,
    pieces: list[str],
    titles: Sequence[str],
    texts: NDArray[np.int64],
    no_text: Sequence[Sequence[int]],
    cache: Path | None,
) -> Ragged:
    """Token ids of each text; a text that occurs several times is tokenised once.

    A text is given by the number `piece * len(titles) + item`; `no_text` holds the ids of the
    pieces in `_NO_TEXT`.
    """
    occurs = np.zeros(len(pieces) * len(titles), dtype=bool)
    occurs[texts] = True
    occurs[np.arange(len(_NO_TEXT)) * len(titles)] = True
    distinct = np.flatnonzero(occurs)[len(_NO_TEXT) :].tolist()
    written = [
        pieces[text // len(titles)].replace(TITLE, titles[text % len(titles)]) for text in distinct
    ]
    table = Ragged.from_rows([*no_text, *tokenised(tokenizer, written, cache)])
    return table.take((np.cumsum(occurs) - 1)[texts])


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    *,
    frame: Frame | None = None,
    cache: Path | None = None,
) -> Ragged:
    """Token ids of each title as an answer, followed by the token that ends it; by item id.

    Args:
        tokenizer: The language model's tokenizer.
        titles: Title of each item, by item id.
        frame: What stands around an answer; None stands for a blank, where the tokenizer needs one,
            and eos.
        cache: See `tokenised`.

    Raises:
        ValueError: The tokenizer has no eos token; see also `one_line_titles` and `tokenised`.
    """
    frame = frame or frame_of(tokenizer, cache=cache)
    titles = one_line_titles(titles)
    lead = frame.lead
    if lead is None:
        lead = "" if _opens_words_itself(tokenizer) else " "
    tokens = tokenised(tokenizer, [lead + title for title in titles], cache)
    return Ragged.from_rows([[*ids, frame.end] for ids in tokens])


def _opens_words_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets the tokens it has within a sentence even without a leading blank.

    This holds for tokenizers that put a word marker before every text (SentencePiece) or ignore
    blanks. If we added a blank as well, they would see two.
    """
    whole, separator, word = tokenised(tokenizer, ["; name", ";", "name"])
    return whole == separator + word
