"""The output of a trained recommender: user representations and item embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.artifacts import read_tensors
from recipes.data.splits import SplitName
from recipes.recommenders.recommender import SequenceRecommender

ENCODED_AT_ONCE = 4096
"""Histories encoded at once."""
SCORED_AT_ONCE = 2**17
"""(row, candidate) pairs scored at once. Due to both limits memory does not grow with the split."""


@dataclass(frozen=True)
class Representations:
    """A trained recommender's vectors."""

    users: dict[SplitName, Tensor]
    """User representations by split, float32 [rows, hidden]; row i belongs to the split's row i."""

    items: Tensor
    """Item embeddings, float32 [num_items, hidden], by item id."""

    @classmethod
    def load(cls, folder: Path) -> "Representations":
        """Read a trained recommender's folder."""
        users = read_tensors(folder / "representations.safetensors")
        items = read_tensors(folder / "items.safetensors")["embeddings"]
        return cls({"train": users["train"], "val": users["val"], "test": users["test"]}, items)

    def scores(
        self, split: SplitName, rows: Sequence[int] | np.ndarray, candidates: np.ndarray
    ) -> Tensor:
        """Scores of each row's candidates.

        Args:
            split: Name of the split.
            rows: n row numbers of the split.
            candidates: int64 [n, c], item ids; line i belongs to `rows[i]`.

        Returns:
            float32 [n, c], dot products of user representation and item embedding.

        Raises:
            ValueError: `rows` and `candidates` differ in length.
        """
        # Copies, because arrays from Parquet may be read-only; torch warns when it shares these.
        index, wanted = torch.tensor(rows), torch.tensor(candidates)
        if len(index) != len(wanted):
            raise ValueError(
                f"candidates has {len(wanted)} lines for {len(index)} rows: pass one line a row"
            )
        scores = torch.empty(wanted.shape, dtype=self.items.dtype)
        step = max(1, SCORED_AT_ONCE // max(1, wanted.shape[1]))
        for start in range(0, len(index), step):
            chunk = slice(start, start + step)
            users = self.users[split][index[chunk]]
            # [n, hidden] . [n, c, hidden] -> [n, c]
            found = torch.einsum("nh,nch->nc", users, self.items[wanted[chunk]])
            scores[chunk] = (
                found if self._first is None else _tied(found, self._first[wanted[chunk]])
            )
        return scores

    def catalogue_scores(self, split: SplitName, rows: np.ndarray) -> Tensor:
        """Scores of all items for n rows of a split, in item order: float32 [n, num_items]."""
        scores = self.users[split][torch.tensor(rows)] @ self.items.T
        return scores if self._first is None else scores[:, self._first]

    @cached_property
    def _first(self) -> Tensor | None:
        """The first item with the same embedding, int64 [num_items]; None if no two are the same.

        Items of one title are the same to a text encoder. A matrix product may round their scores
        differently, and would so break the tie.
        """
        distinct, first, kinds = np.unique(
            self.items.numpy(), axis=0, return_index=True, return_inverse=True
        )
        return None if len(distinct) == len(self.items) else torch.from_numpy(first[kinds])


def _tied(scores: Tensor, kinds: Tensor) -> Tensor:
    """Give the candidates of one kind in a row the score of the first: [n, c] -> [n, c]."""
    same = kinds[:, :, None] == kinds[:, None, :]
    return scores.gather(1, same.int().argmax(dim=2))


@torch.no_grad()
def encode(model: SequenceRecommender, histories: Tensor) -> Tensor:
    """User representations without dropout: int64 [rows, time] -> float32 [rows, hidden]."""
    model.eval()
    return torch.cat([model(chunk) for chunk in histories.split(ENCODED_AT_ONCE)])
