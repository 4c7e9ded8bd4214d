"""The two rules that read an item out of a generated answer."""

from collections.abc import Sequence


def parse_answer(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names, or None if it is invalid.

    Our rule: apart from case and runs of white space, the answer must equal a candidate's title, as
    the language model's tokenizer writes it (`recipes/prompting/written.py`). An answer that is the
    title of two candidates is ambiguous and therefore invalid.
    """
    answer = _normalised(text)
    named = [index for index, title in enumerate(candidate_titles) if _normalised(title) == answer]
    return named[0] if len(named) == 1 else None


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


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
