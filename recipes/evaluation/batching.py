"""Batches of prompts of like length, so that little of a left-padded batch is padding."""

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from recipes.data.splits import SplitName
from recipes.evaluation.metrics import Ints
from recipes.llm.adapted import AdaptedModel


def prompt_lengths(
    adapted: AdaptedModel, split: SplitName, rows: Sequence[int], batch_size: int
) -> Ints:
    """Tokens of each row's prompt, int64 [n]; prompts are embedded, which is cheap, but not run."""
    lengths = [
        adapted.prompt_inputs(split, rows[start : start + batch_size]).attention_mask.sum(dim=1)
        for start in range(0, len(rows), batch_size)
    ]
    return np.concatenate([batch.cpu().numpy() for batch in lengths]).astype(np.int64)


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
