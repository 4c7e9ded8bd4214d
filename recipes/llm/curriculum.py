"""LLaRA's curriculum from text-only to hybrid batches, which iLoRA adopts (Section 3.2)."""

import numpy as np
from numpy.typing import NDArray


def hybrid_steps(total: int, seed: int, *, curriculum: bool) -> NDArray[np.bool_]:
    """Which optimiser steps are hybrid, with projected embeddings in the prompts' slots.

    Step t of T is hybrid with probability t / T, so the last step always is. All steps are drawn
    beforehand and depend on the seed only, so they are the same in a resumed run and for every
    method. (In the reference, copies of the dataset count the steps, and the count restarts with
    each epoch, so the probability never exceeds about 0.2.)

    Args:
        total: Number T of optimiser steps.
        seed: Training seed of the adapter.
        curriculum: False makes every step hybrid.

    Returns:
        bool [total]; index 0 is step 1.
    """
    if not curriculum:
        return np.ones(total, dtype=np.bool_)
    chances = np.arange(1, total + 1) / total
    return np.random.default_rng(seed).random(total) < chances
