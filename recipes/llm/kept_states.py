"""The frozen prefix's states of training samples, computed once and kept on disk.

A folder is named after what determines its content: the model's layers and the samples' tokens. It
holds shards of a fixed number of samples, each a safetensors file that is written whole, with a
checksum. An interrupted computation goes on with the first missing shard, and gives the same states
as one that was not interrupted.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from recipes.artifacts import read_tensors, write_tensors
from recipes.llm.frozen_prefix import prefix_states
from recipes.prompting.collator import TrainingCollator

VERSION = 1
"""Raised when the same tokens begin to have other states."""
SHARD = 32
"""Samples in a shard."""
AT_ONCE = 8
"""Samples in a forward pass."""
STATES, SEAL = "states", "sha256"


@dataclass(frozen=True)
class KeptStates:
    """States of n samples, read from their shards through the system's memory map."""

    shards: Sequence[Path]
    lengths: NDArray[np.int64]
    """int64 [n], number of tokens of each sample."""

    def of(self, sample: int) -> Tensor:
        """The states of one sample, [tokens, width]."""
        shard = sample // SHARD
        start = int(self.lengths[shard * SHARD : sample].sum())
        with safe_open(self.shards[shard], framework="pt") as stream:
            return stream.get_slice(STATES)[start : start + int(self.lengths[sample])]

    def last(self, count: int = 1024) -> Tensor:
        """The last token's states of at most `count` samples, [n, width]."""
        return torch.stack([self.of(one)[-1] for one in range(min(count, len(self.lengths)))])


def kept_states(
    model: PreTrainedModel, first: int, collator: TrainingCollator, folder: Path
) -> KeptStates:
    """The states of all samples of a collator, computed as far as they are not kept already.

    Args:
        model: A causal language model in evaluation mode, without an adapter.
        first: Index of the decoder layer that reads the states.
        collator: The samples; they are the same in every epoch.
        folder: Where the states of this language model are kept.

    Raises:
        ValueError: The disk has no room.
    """
    lengths = collator.lengths(0)
    place = folder / _key(model, first, collator)
    numbers = range(-(-len(lengths) // SHARD))
    shards = [place / f"{number:05d}.safetensors" for number in numbers]
    missing = [number for number in numbers if not _is_whole(shards[number])]
    width = model.get_input_embeddings().get_parameter("weight").shape[1]
    tokens = int(sum(lengths[number * SHARD : (number + 1) * SHARD].sum() for number in missing))
    _check_room(folder, tokens * width * model.dtype.itemsize)
    with tqdm(total=tokens, desc=f"states below layer {first}", disable=not missing) as bar:
        for number in missing:
            samples = np.arange(number * SHARD, min((number + 1) * SHARD, len(lengths)))
            states = _computed(model, first, collator, samples)
            write_tensors(shards[number], {STATES: states, SEAL: _seal(states)})
            bar.update(len(states))
    return KeptStates(shards, lengths)


def _computed(
    model: PreTrainedModel, first: int, collator: TrainingCollator, samples: NDArray[np.int64]
) -> Tensor:
    """States of some samples, one after the other: [tokens, width] on the CPU."""
    lengths = collator.lengths(0)[samples]
    order = np.argsort(lengths, kind="stable")
    found: dict[int, Tensor] = {}
    for places in np.split(order, range(AT_ONCE, len(order), AT_ONCE)):
        batch = collator(samples[places].tolist())
        ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
        states = prefix_states(model, first, ids, mask).cpu()
        for row, place in enumerate(places.tolist()):
            found[place] = states[row, -int(lengths[place]) :]
    return torch.cat([found[place] for place in range(len(samples))])


def _check_room(folder: Path, needed: int) -> None:
    existing = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"the states that adapt.frozen_prefix keeps take {needed / 1e9:.1f} GB, but {existing} "
            f"has {free / 1e9:.1f} GB left: lower adapt.train_windows"
        )


def _is_whole(shard: Path) -> bool:
    try:
        found = read_tensors(shard)
        return torch.equal(found[SEAL], _seal(found[STATES]))
    except (OSError, ValueError, KeyError):
        return False


def _seal(states: Tensor) -> Tensor:
    """SHA-256 of the states, uint8 [32]."""
    digest = hashlib.sha256(states.contiguous().view(torch.uint8).numpy().data).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def _key(model: PreTrainedModel, first: int, collator: TrainingCollator) -> str:
    """SHA-256 of what determines the states, apart from the model's weights."""
    code = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    parts = [VERSION, SHARD, AT_ONCE, first, str(model.dtype), code]
    digest = hashlib.sha256(json.dumps(parts).encode())
    prompts, answers = collator.prompts.input_ids.take(collator.rows), collator.answers
    for ragged in (prompts, answers.take(collator.targets)):
        digest.update(ragged.values.tobytes() + ragged.offsets.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StatesCollator:
    """Adds the kept states to the batches of a collator."""

    inner: TrainingCollator
    states: KeptStates

    @property
    def rows(self) -> NDArray[np.int64]:
        """See `TrainingCollator`."""
        return self.inner.rows

    def lengths(self, epoch: int) -> NDArray[np.int64]:
        """See `TrainingCollator`."""
        return self.inner.lengths(epoch)

    def __call__(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """A batch of the inner collator, and its `states`: [b, t, width], zeros where padded."""
        batch = self.inner(samples)
        rows = [self.states.of(sample % len(self.rows)) for sample in samples]
        states = rows[0].new_zeros(*batch["input_ids"].shape, rows[0].shape[1])
        for place, row in zip(states, rows, strict=True):
            place[-len(row) :] = row
        return {**batch, "states": states}
