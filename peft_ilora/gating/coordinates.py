"""The rank coordinates of a layer, and which expert owns each.

Experts lie side by side: expert k owns `ranks[k]` neighbouring coordinates. A grouped convolution
splits the coordinates into its groups first, and each group holds a part of every expert.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from peft_ilora.errors import sharded_error


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Rank coordinates of one layer. Made by `coordinates`, so equal ones are the same object."""

    ranks: tuple[int, ...]
    """Rank of each expert."""
    groups: int = 1
    """Groups of a convolution; divides every rank."""

    @property
    def num_experts(self) -> int:
        """Number of experts K."""
        return len(self.ranks)

    def spread(self, weights: Tensor) -> Tensor:
        """Repeat each expert's weight over the coordinates that it owns.

        Args:
            weights: [..., num_experts]

        Returns:
            [..., sum(ranks)]
        """
        owned = self._spread_over_group(weights)
        return owned if self.groups == 1 else torch.cat([owned] * self.groups, dim=-1)

    def fold(self, b: Tensor, weights: Tensor) -> Tensor:
        """Multiply the columns of B by the weights of their experts.

        Args:
            b: [out, sum(ranks) / groups, ...]
            weights: [num_experts]

        Raises:
            RuntimeError: B is sharded over devices.
        """
        if hasattr(b, "device_mesh") or b.numel() == 0:
            raise sharded_error("the adapter's")
        columns = self._spread_over_group(weights.to(b.device, b.dtype))
        return b * columns.view(-1, *[1] * (b.dim() - 2))

    def _spread_over_group(self, weights: Tensor) -> Tensor:
        ranks = [rank // self.groups for rank in self.ranks]
        if len(set(ranks)) == 1:
            return weights.repeat_interleave(ranks[0], dim=-1)
        columns = weights.split(1, dim=-1)
        owned = [c.expand(*c.shape[:-1], rank) for c, rank in zip(columns, ranks, strict=True)]
        return torch.cat(owned, dim=-1)


@cache
def coordinates(ranks: tuple[int, ...], groups: int = 1) -> Coordinates:
    """Return the coordinates of layers with these ranks and groups."""
    return Coordinates(ranks, groups)
