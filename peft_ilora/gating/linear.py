"""Generators of logits that are products: `linear`, and `mlp` with one hidden layer."""

import torch
from torch import Tensor, nn


class GateLinear(nn.Linear):
    """A linear layer that takes its input to its weight's device, and computes in float32 at least.

    It does so here and not before the call, because hooks that load or cast a weight have run by
    now.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        moved = input.to(self.weight.device, dtype)
        return nn.functional.linear(moved, self.weight.to(dtype), bias)


def linear(width: int, outputs: int, zeros: bool) -> nn.Module:
    """Return the paper's bias-free `W z` (arXiv 2408.10159, Eq. 8).

    Args:
        width: Width of what it reads.
        outputs: Number of logits.
        zeros: Whether W starts at zero.
    """
    made = GateLinear(width, outputs, bias=False)
    if zeros:
        nn.init.zeros_(made.weight)
    return made


def mlp(width: int, outputs: int, zeros: bool) -> nn.Module:
    """Return `linear` behind one hidden layer of the input's width, with GELU."""
    head = linear(width, outputs, zeros)
    return nn.Sequential(GateLinear(width, width), nn.GELU(), head)
