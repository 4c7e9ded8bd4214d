"""Batches of prompts of like length, so that little of a left-padded batch is padding."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from recipes.scoring.arrays import Ints


def batches_by_length(lengths: Ints, batch_size: int, title: str) -> Iterator[Ints]:
    """Yield positions 0..n-1 in batches, longest prompts first, under a progress bar.

    Longest first: a batch that does not fit into memory fails at once, not at the end.
    """
    order = np.argsort(-lengths, kind="stable")
    with tqdm(total=len(order), desc=title, unit="row") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield batch
            bar.update(len(batch))
