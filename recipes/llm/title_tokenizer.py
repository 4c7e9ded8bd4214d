"""The stand-in's tokenizer with one token a title.

Its vocabulary is closed: special tokens, the sentences of a prompt, and the catalogue's titles. A
title is known by the blank before it, which every prompt and answer has (`hybrid_prompt`), and
which neither a special token nor a sentence begins with. So whatever a title spells, `</s>` or
`Next:`, it is a token of its own. Items of one title share its token.
"""

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipes.llm.stand_in_tokenizer import BEGIN, END, PAD, SPECIAL, UNKNOWN
from recipes.prompting.prompts import CUE, HISTORY, OPTIONS, SEPARATOR, one_line_titles

SENTENCES = (OPTIONS, f"\n{HISTORY}", "\n", CUE)
"""What a prompt has besides titles; separators are no tokens. The cue is a token of its own, so
that it is the same with and without a user slot before it."""


def question(place: int) -> str:
    """The cue of the stand-in's lessons that asks for the candidate at a place, from 0."""
    return f"\n#{place + 1}:"


def new_title_tokenizer(titles: Sequence[str], num_candidates: int) -> PreTrainedTokenizerFast:
    """A tokenizer in which each of the titles is one token.

    Any other text becomes `<unk>`. Decoding gives back a title exactly, as one line.

    Args:
        titles: Title of each item, by item id.
        num_candidates: Number of candidates in a prompt, each of which has its `question`.

    Raises:
        ValueError: See `one_line_titles`.
    """
    sentences = [*SENTENCES, *map(question, range(num_candidates))]
    known = [*SPECIAL, *sentences, *(f" {title}" for title in one_line_titles(titles))]
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\A{re.escape(SEPARATOR)}"), "removed"),
            pre_tokenizers.Split(Regex(_SENTENCE), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


_SENTENCE = "|".join(
    [
        rf"\A(?:{re.escape(OPTIONS)}|{re.escape(CUE)})",
        rf"\n(?:{re.escape(HISTORY)}|#\d+:)?",
        # A text without a blank before it is no title: cut off its first letter, so that `encoding`
        # sees that a blank matters.
        r"\A\S",
    ]
)
