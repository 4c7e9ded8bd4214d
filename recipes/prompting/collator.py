"""Collates rows into a left-padded batch.

Prompts are padded on the left, both in training and in generation. Generation needs this: with
padding on the right, a shorter prompt would be continued from a pad position, as in the reference.
Training gains from it: all answers end at the right edge of the batch, so the language model's
head, often its widest layer, is evaluated only at those few positions.
"""

from collections.abc import Callable, Sequence
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
    """A batch of prompts without answers, for generation.

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
    """Collates samples into a batch of prompts, each followed by its answer.

    Sample i of epoch e has the number `e * n + i`, where n is the number of samples.
    """

    prompts: EncodedPrompts
    """The prompts of all rows in the first epoch."""
    answers: Ragged
    """Token ids of each answer, eos included."""
    rows: NDArray[np.int64]
    """Index of each sample's prompt in `prompts`."""
    targets: NDArray[np.int64]
    """Index of each sample's answer in `answers`, which is the target's item id in a run."""
    pad_id: int
    users: Tensor | None = None
    """User representation of each prompt, float32 [prompts, d]."""
    later: Callable[[int], EncodedPrompts] | None = None
    """Epoch, from 1 -> its prompts; None if they are the same in every epoch."""

    def of_epoch(self, epoch: int) -> EncodedPrompts:
        """The prompts of all rows in an epoch, from 0."""
        return self.prompts if epoch == 0 or self.later is None else self.later(epoch)

    def lengths(self, epoch: int) -> NDArray[np.int64]:
        """Number of tokens of each sample in an epoch, prompt and answer together: int64 [n]."""
        prompts = self.of_epoch(epoch).input_ids
        return prompts.lengths[self.rows] + self.answers.lengths[self.targets]

    def __call__(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Collate samples of one epoch, given by their numbers.

        Returns:
            `input_ids`, `slot_items`, `attention_mask`: int64 [b, t]. `labels`: int64 [b, a], the
            targets at the last a positions, where a is the length of the longest answer; -100 at
            positions of the prompt. `users`: float32 [b, d], if the collator has `users`.
        """
        epochs, index = np.divmod(np.asarray(samples, dtype=np.int64), len(self.rows))
        rows, answers = self.rows[index], self.answers.take(self.targets[index])
        prompts = self.of_epoch(int(epochs[0]))
        input_ids, slot_items = prompts.input_ids.take(rows), prompts.slot_items.take(rows)
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
