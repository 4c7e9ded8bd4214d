"""Batches of prompts of similar length, which need little padding."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from recipes.scoring.arrays import Ints


def batches_by_length(lengths: Ints, batch_size: int, title: str) -> Iterator[Ints]:
    """Yield indices 0 .. n-1 in batches, longest prompts first, and show a progress bar.

    Long prompts come first so that a batch too large for memory fails at once, not at the end.

    Args:
        lengths: int64 [n], number of tokens in each prompt.
        batch_size: Number of prompts in a batch.
        title: Label of the progress bar.
    """
    order = np.argsort(-lengths, kind="stable")
    with tqdm(total=len(order), desc=title, unit="row") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield batch
            bar.update(len(batch))
