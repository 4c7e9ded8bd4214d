"""The prompt as a string: the candidates, the history, and a cue for the answer.

Two private-use characters stand for positions that hold a vector in place of text. `SLOT` follows
each title and takes that item's projected embedding; `USER_SLOT` takes the projected user
representation. `encoding.py` turns them into tokens; here a prompt is only text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.prompting.plain_text import HIDDEN

SLOT = "\ue000"
USER_SLOT = "\ue001"
TITLE = "\ue002"
"""A title's place in a piece of a prompt."""
MARKS = (SLOT, USER_SLOT, TITLE, HIDDEN)

HISTORY = "Chosen so far, oldest first:"
OPTIONS = "Pick the next one from:"
CUE = "Next:"
SEPARATOR = ";"


def one_line_titles(titles: Sequence[str]) -> list[str]:
    """Titles as prompts and answers show them: runs of white space, newlines too, are one blank.

    Raises:
        ValueError: A title is blank, or contains a private-use character that marks something.
    """
    shown = [" ".join(title.split()) for title in titles]
    for item_id, title in enumerate(shown):
        if not title:
            raise ValueError(
                f"the title of item {item_id} is blank: give every item a title, and prepare the "
                "data again in another --out"
            )
        if any(mark in title for mark in MARKS):
            raise ValueError(
                f"title {title!r} of item {item_id} contains a private-use character (U+E000 to "
                "U+E003) that marks slots in prompts: remove it from the titles"
            )
    return shown


def hybrid_prompt(
    history: Sequence[str], candidates: Sequence[str], *, user_slot: bool = False
) -> str:
    """The prompt with a slot after each title (LLaRA's hybrid prompt, in our own wording).

    The history comes last, so that the newest item stands next to the cue. A blank precedes every
    title, so that a byte-level tokenizer gives it the same tokens wherever it occurs, the answer
    included.

    Args:
        history: Titles, oldest first; may be empty.
        candidates: Titles to choose from, in the frozen order. Without any, the prompt says nothing
            of a choice, and every title is an answer.
        user_slot: Put one `USER_SLOT` before the cue, as the method `lora-user-slot` does.
    """
    options = f"{OPTIONS}{_listed(candidates)}\n" if candidates else ""
    return f"{options}{HISTORY}{_listed(history)}\n{USER_SLOT if user_slot else ''}{CUE}"


def slot_order(
    histories: NDArray[np.integer], candidates: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Item ids in the order of `hybrid_prompt`'s slots: [n, h] and [n, c] -> [n, c + h]."""
    return np.concatenate([candidates, histories], axis=1)


def text_prompt(history: Sequence[str], candidates: Sequence[str]) -> str:
    """The prompt without slots, for display and for training the stand-in's tokenizer."""
    return hybrid_prompt(history, candidates).replace(SLOT, "")


def _listed(titles: Sequence[str]) -> str:
    return SEPARATOR.join(f" {title}{SLOT}" for title in titles)
