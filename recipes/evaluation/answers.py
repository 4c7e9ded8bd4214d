"""The rules that read an item out of a generated answer, and what an invalid answer is.

Our rule has three steps. An answer names a candidate if the two are equal apart from runs of white
space and the way in which Unicode composes accents (NFC). Only if no candidate is equal in this
sense, they are compared without regard to case, and only then in compatibility form (NFKC:
ligatures, full width) and without punctuation at the end. Both sides go through the same steps, and
both are compared as the language model's tokenizer writes them (`recipes/prompting/written.py`). So
an exact answer always counts, also where another title differs from it in case, or in its last full
stop, alone.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from recipes.prompting.written import Written

Invalid = Literal["empty", "cut short", "ambiguous", "not a candidate", "not finite"]
"""Why an answer is invalid. `empty`: nothing was written; `cut short`: the limit of tokens came
before its end; `ambiguous`: it is the title of several candidates; `not a candidate`: of none;
`not finite`: the model's scores of the row are not finite, so what it wrote means nothing."""
INVALID: tuple[Invalid, ...] = (
    "empty",
    "cut short",
    "ambiguous",
    "not a candidate",
    "not finite",
)
PUNCTUATION = ".,;:!?\u2026\u3002"
"""What may be missing or added at the end; the last two are an ellipsis and an ideographic stop."""


def parse_answer(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names by our rule, or None if it is invalid.

    An answer that is the title of two candidates is ambiguous and therefore invalid.
    """
    named = _named(text, candidate_titles)
    return named[0] if len(named) == 1 else None


def invalid_kind(answer: Written, candidate_titles: Sequence[str]) -> Invalid | None:
    """Why an answer names no single candidate by our rule; None if it names one."""
    named = _named(answer.text, candidate_titles)
    if len(named) == 1:
        return None
    if named:
        return "ambiguous"
    if not answer.text:
        return "empty"
    return "cut short" if answer.cut_short else "not a candidate"


def _named(text: str, candidate_titles: Sequence[str]) -> list[int]:
    """Indices of the candidates that an answer names."""
    for form in (_exact, _plain, _lenient):
        answer = form(text)
        if found := [i for i, title in enumerate(candidate_titles) if form(title) == answer]:
            return found
    return []


@lru_cache(maxsize=2**16)
def _exact(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


@lru_cache(maxsize=2**16)
def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", _exact(text).casefold())


@lru_cache(maxsize=2**16)
def _lenient(text: str) -> str:
    plain = _plain(unicodedata.normalize("NFKC", text))
    return plain.rstrip(PUNCTUATION + " ") or plain


def parse_answer_by_substring(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names by the reference's rule, or None.

    In the reference (LLaRA, iLoRA), an answer is valid if exactly one candidate's title is a
    substring of it. This rejects a correct answer whose title contains another candidate's title,
    and accepts a title inside a longer text. Reports give it a label of its own, for comparison.
    """
    answer = text.strip().lower()
    named = [
        index for index, title in enumerate(candidate_titles) if title.strip().lower() in answer
    ]
    return named[0] if len(named) == 1 else None
