"""LLaRA's curriculum: from text-only batches to hybrid ones (adopted by iLoRA, Section 3.2)."""

import numpy as np
from numpy.typing import NDArray


def hybrid_steps(total: int, seed: int, *, curriculum: bool) -> NDArray[np.bool_]:
    """Which optimiser steps see projected embeddings in the slots.

    Step t of T is hybrid with probability t / T, so the last one always is. All steps are decided
    beforehand from the seed alone: a resumed run sees the same ones, and so does every method.
    (The reference counts in copies of its dataset that restart with each epoch, so its probability
    never passes about 0.2.)

    Args:
        total: Optimiser steps T.
        seed: Of the adapter.
        curriculum: False makes every step hybrid.

    Returns:
        bool [total]; index 0 is step 1.
    """
    if not curriculum:
        return np.ones(total, dtype=np.bool_)
    chances = np.arange(1, total + 1) / total
    return np.random.default_rng(seed).random(total) < chances
