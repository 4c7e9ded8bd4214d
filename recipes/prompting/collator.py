"""Rows -> a left-padded batch.

Prompts are padded on the left, in training and in generation alike. Generation needs it: with
padding on the right a shorter prompt would be continued from a pad position (the reference does).
Training gains from it: the answers stand at the right edge of the batch, so the language model's
head, often its widest layer, is evaluated at those few positions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.prompting.encoding import NO_SLOT, EncodedPrompts
from recipes.prompting.ragged import Ragged

IGNORED = -100


def prompt_batch(
    prompts: EncodedPrompts, rows: NDArray[np.integer], pad_id: int
) -> dict[str, Tensor]:
    """Prompts without answers, for generation.

    Returns:
        `input_ids`, `slot_items`, `attention_mask`: int64 [b, t].
    """
    input_ids, slot_items = prompts.input_ids.take(rows), prompts.slot_items.take(rows)
    width = int(input_ids.lengths.max())
    ones = Ragged(np.ones_like(input_ids.values), input_ids.offsets)
    return _tensors(
        input_ids=input_ids.right_aligned(width, pad_id),
        slot_items=slot_items.right_aligned(width, NO_SLOT),
        attention_mask=ones.right_aligned(width, 0),
    )


@dataclass(frozen=True)
class TrainingCollator:
    """Sample numbers -> prompts, each followed by its answer."""

    prompts: EncodedPrompts
    answers: Ragged
    """By item id, eos included."""
    rows: NDArray[np.int64]
    """Prompt of each sample."""
    targets: NDArray[np.int64]
    """Item to answer of each sample."""
    pad_id: int
    users: Tensor | None = None
    """float32 [prompts, d]: user representations, by prompt."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, prompt and answer."""
        return self.prompts.input_ids.lengths[self.rows] + self.answers.lengths[self.targets]

    def __call__(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Collate.

        Returns:
            `input_ids`, `slot_items`, `attention_mask`: int64 [b, t], and `labels`: int64 [b, a],
            the targets of the last `a` positions (a: longest answer, eos included), -100 on the
            prompt. With `users`: `users`, float32 [b, d].
        """
        index = np.asarray(samples, dtype=np.int64)
        rows, answers = self.rows[index], self.answers.take(self.targets[index])
        input_ids = self.prompts.input_ids.take(rows)
        slot_items = self.prompts.slot_items.take(rows)
        width = int((input_ids.lengths + answers.lengths).max())
        longest = int(answers.lengths.max())
        starts = width - answers.lengths - input_ids.lengths
        columns = np.arange(width)
        attended = columns >= starts[:, None]
        is_prompt = attended & (columns < (width - answers.lengths)[:, None])

        ids = answers.right_aligned(width, self.pad_id)
        ids[is_prompt] = input_ids.values
        slots = np.full_like(ids, NO_SLOT)
        slots[is_prompt] = slot_items.values
        batch = _tensors(
            input_ids=ids,
            slot_items=slots,
            attention_mask=attended.astype(np.int64),
            labels=answers.right_aligned(longest, IGNORED),
        )
        if self.users is not None:
            batch["users"] = self.users[torch.from_numpy(rows)]
        return batch


def _tensors(**arrays: NDArray[np.int64]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
