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

    @property
    def rank(self) -> int:
        """Number of coordinates."""
        return sum(self.ranks)

    def spread(self, weights: Tensor) -> Tensor:
        """Repeat each expert's weight over the coordinates that it owns.

        Args:
            weights: [..., num_experts]

        Returns:
            [..., sum(ranks)]
        """
        owned = self._spread_over_group(weights)
        return owned if self.groups == 1 else torch.cat([owned] * self.groups, dim=-1)

    def fold(self, b: Tensor, factors: Tensor) -> Tensor:
        """Multiply B by a factor for each coordinate: `B diag(factors)`.

        Args:
            b: [out, rank / groups, ...]; the outputs of a group have the coordinates of that group.
            factors: [rank]

        Raises:
            RuntimeError: B is sharded over devices.
        """
        check_whole(b)
        of_groups = factors.to(b.device, b.dtype).view(self.groups, 1, -1, *[1] * (b.dim() - 2))
        return (b.unflatten(0, (self.groups, -1)) * of_groups).flatten(0, 1)

    def product(self, b: Tensor, vector: Tensor) -> Tensor:
        """Return what B makes of one vector of rank coordinates, [out].

        Args:
            b: [out, rank / groups, ...], of one element in each further dimension.
            vector: [rank]

        Raises:
            RuntimeError: B is sharded over devices.
        """
        check_whole(b)
        columns = b.reshape(self.groups, b.shape[0] // self.groups, -1)
        of_groups = vector.to(b.device, b.dtype).view(self.groups, -1, 1)
        return (columns @ of_groups).flatten()

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


def check_whole(b: Tensor) -> None:
    """Refuse a B that is not whole on one device.

    Raises:
        RuntimeError: It is sharded over devices.
    """
    if hasattr(b, "device_mesh") or b.numel() == 0:
        raise sharded_error("the adapter's")
