"""LLaRA's curriculum from text-only to hybrid batches, which iLoRA adopts (Section 3.2)."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from recipes.experiment import Mistake


def hybrid_steps(
    total: int,
    seed: int,
    *,
    curriculum: bool,
    epoch: int | None = None,
    mistakes: Collection[Mistake] = (),
) -> NDArray[np.bool_]:
    """Which optimiser steps are hybrid, with projected embeddings in the prompts' slots.

    Step t of T is hybrid with probability t / T, so the last step always is. All steps are drawn
    beforehand and depend on the seed only, so they are the same in a resumed run and for every
    method.

    In the reference, copies of the dataset count the steps, and the count restarts with each epoch
    (`curriculum-restarts`): in the s-th step of an epoch the probability is s / T, never above
    about 0.2 in five epochs. Its first upload goes the other way (`curriculum-reversed`), with the
    probability 1 - t / T, or 1 - s / T.

    Args:
        total: Number T of optimiser steps.
        seed: Training seed of the adapter.
        curriculum: False makes every step hybrid.
        epoch: Optimiser steps of an epoch; needed for `curriculum-restarts`.
        mistakes: Mistakes of the reference to repeat; others than these two change nothing here.

    Returns:
        bool [total]; index 0 is step 1.
    """
    if not curriculum:
        return np.ones(total, dtype=np.bool_)
    steps = np.arange(total)
    if "curriculum-restarts" in mistakes:
        assert epoch is not None
        steps = steps % epoch
    chances = (steps + 1) / total
    if "curriculum-reversed" in mistakes:
        chances = 1 - chances
    return np.random.default_rng(seed).random(total) < chances
