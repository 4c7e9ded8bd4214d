"""The two rules that read an item out of a generated answer."""

from collections.abc import Sequence


def parse_answer(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names, or None if it is invalid.

    Our rule: apart from case and runs of white space the answer IS one candidate's title. An answer
    that two candidates share as their title is ambiguous, so invalid.
    """
    answer = _normalised(text)
    named = [index for index, title in enumerate(candidate_titles) if _normalised(title) == answer]
    return named[0] if len(named) == 1 else None


def parse_answer_by_substring(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names by the reference's rule, or None.

    The reference (LLaRA, iLoRA) calls an answer valid when exactly one candidate title is a
    substring of it. That voids a perfect answer whose title contains another candidate's, and
    accepts a title inside a longer text. Reported under its own label, for comparison only.
    """
    answer = text.strip().lower()
    named = [
        index for index, title in enumerate(candidate_titles) if title.strip().lower() in answer
    ]
    return named[0] if len(named) == 1 else None


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
