"""Titles as a language model writes them: the form they have once encoded and decoded again.

A tokenizer may normalise what it reads (NFC, NFKC, lower case) and set blanks of its own when it
decodes ("don ' t"). So an answer is never compared with a title as it stands in the data, but with
this form, which generated tokens go through as well.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from recipes.prompting.special_tokens import find_id


def first_line(text: str) -> str:
    """The first line of the stripped text, stripped; "" if there is none."""
    return text.strip().partition("\n")[0].strip()


def written_texts(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], end: int | None = None
) -> list[str]:
    """The first line of each row of token ids, up to its end and without special tokens.

    Args:
        tokenizer: The language model's tokenizer.
        tokens: Rows of token ids.
        end: The token that ends an answer; None stands for eos.
    """
    end = find_id(tokenizer, "eos") if end is None else end
    rows = [row[: row.index(end)] if end in row else row for row in map(list, tokens)]
    return [first_line(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def written_titles(
    tokenizer: PreTrainedTokenizerBase,
    answer_ids: Sequence[Sequence[int]],
    end: int | None = None,
) -> list[str]:
    """Each title as the language model writes it.

    Args:
        tokenizer: The language model's tokenizer.
        answer_ids: Token ids of each title, by item id; its end may follow.
        end: See `written_texts`.

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
