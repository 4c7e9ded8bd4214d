"""Titles as a language model writes them: the form they have once encoded and decoded again.

A tokenizer may normalise what it reads (NFC, NFKC, lower case) and set blanks of its own when it
decodes ("don ' t"). So an answer is never compared with a title as it stands in the data, but with
this form, which generated tokens go through as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from recipes.prompting.special_tokens import find_id


@dataclass(frozen=True)
class Written:
    """An answer as a language model wrote it."""

    text: str
    """The first line, stripped and without special tokens."""
    cut_short: bool = False
    """Whether the limit of tokens ended it: neither the answer's end nor a line's end follows."""


def first_line(text: str) -> str:
    """The first line of the stripped text, stripped; "" if there is none."""
    return text.strip().partition("\n")[0].strip()


def ends_of(tokenizer: PreTrainedTokenizerBase, end: int | None = None) -> set[int]:
    """The tokens that end an answer: `end`, such as that of a chat's turn, and eos."""
    return {one for one in (end, find_id(tokenizer, "eos")) if one is not None}


def written_answers(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], end: int | None = None
) -> list[Written]:
    """What each row of token ids says, up to its end.

    Args:
        tokenizer: The language model's tokenizer.
        tokens: Rows of token ids.
        end: A token that ends an answer, besides eos.
    """
    ends = ends_of(tokenizer, end)
    rows = [list(takewhile(lambda token: token not in ends, row)) for row in tokens]
    decoded = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [
        Written(first_line(text), len(row) == len(whole) and "\n" not in text.lstrip())
        for text, row, whole in zip(decoded, rows, tokens, strict=True)
    ]


def written_texts(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], end: int | None = None
) -> list[str]:
    """The first line of each row of token ids; the arguments are those of `written_answers`."""
    return [written.text for written in written_answers(tokenizer, tokens, end)]


def written_titles(
    tokenizer: PreTrainedTokenizerBase,
    answer_ids: Sequence[Sequence[int]],
    end: int | None = None,
) -> list[str]:
    """Each title as the language model writes it.

    Args:
        tokenizer: The language model's tokenizer.
        answer_ids: Token ids of each title, by item id; its end may follow.
        end: See `written_answers`.

    Raises:
        ValueError: Nothing is left of a title, so that no answer could name it.
    """
    texts = written_texts(tokenizer, answer_ids, end)
    for item, text in enumerate(texts):
        if not text:
            raise ValueError(
                f"the title of item {item} cannot be written with the tokenizer "
                f"{tokenizer.name_or_path!r}: nothing is left of it after encoding and decoding. "
                "Give the item another title, or choose another adapt.llm"
            )
    return texts
