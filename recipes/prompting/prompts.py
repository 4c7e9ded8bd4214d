"""The prompt as a string: the candidates, the history, and a cue for the answer.

Two private-use characters stand for positions that hold a vector in place of text. `SLOT` follows
each title and takes that item's projected embedding; `USER_SLOT` takes the projected user
representation. `encoding.py` turns them into tokens; here a prompt is only text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLOT = "\ue000"
USER_SLOT = "\ue001"

HISTORY = "Chosen so far, oldest first:"
OPTIONS = "Pick the next one from:"
CUE = "Next:"
SEPARATOR = ";"


def check_titles(titles: Sequence[str]) -> None:
    """Refuse titles that contain a slot character.

    Raises:
        ValueError: A title contains `SLOT` or `USER_SLOT`.
    """
    for item_id, title in enumerate(titles):
        if SLOT in title or USER_SLOT in title:
            raise ValueError(
                f"title {title!r} of item {item_id} contains a private-use character (U+E000 or "
                "U+E001) that marks slots in prompts: remove it from the titles"
            )


def hybrid_prompt(
    history: Sequence[str], candidates: Sequence[str], *, user_slot: bool = False
) -> str:
    """The prompt with a slot after each title (LLaRA's hybrid prompt, in our own wording).

    The history comes last, so that the newest item stands next to the cue. A blank precedes every
    title, so that a byte-level tokenizer gives it the same tokens wherever it occurs, the answer
    included.

    Args:
        history: Titles, oldest first; may be empty.
        candidates: Titles to choose from, in the frozen order.
        user_slot: Put one `USER_SLOT` before the cue, as the method `lora-user-slot` does.
    """
    return (
        f"{OPTIONS}{_listed(candidates)}\n"
        f"{HISTORY}{_listed(history)}\n"
        f"{USER_SLOT if user_slot else ''}{CUE}"
    )


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
