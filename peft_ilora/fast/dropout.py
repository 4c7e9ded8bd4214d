"""Dropout whose mask is drawn again in the backward pass instead of being kept.

`torch.nn.functional.dropout` draws one float for each element and keeps mask and product for the
backward pass. Here a mask is a seed: 16 random bits decide an element, so drawing is cheap enough
to be repeated, and nothing of the input's size is kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LEVELS = 2**16


@dataclass(frozen=True)
class DropMask:
    """A mask of dropped elements."""

    seed: int
    threshold: int
    """An element is dropped when its 16 bits, as a number from 0, lie below."""

    def kept(self, like: Tensor) -> Tensor:
        """Return one where an element of `like` is kept and zero where it is dropped.

        It is the same at every call. They are numbers because multiplying is faster than choosing.

        Args:
            like: The result takes its shape, dtype and device.
        """
        generator = torch.Generator(like.device).manual_seed(self.seed)
        words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        kept = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        torch.ge(bits[: like.numel()], self.threshold - _LEVELS // 2, out=kept.view(-1))
        return kept


def draw_mask(p: float) -> DropMask | None:
    """Draw a mask from torch's CPU generator, which checkpointing restores for recomputation.

    Args:
        p: Probability that an element is dropped, in [0, 1); rounded to a multiple of 2**-16.

    Returns:
        None where nothing is dropped.
    """
    threshold = _threshold(p)
    return DropMask(int(torch.randint(2**62, (), device="cpu")), threshold) if threshold else None


def probability(module: nn.Module) -> float:
    """Return the probability that a module, `nn.Dropout` or `nn.Identity`, drops an element now."""
    return module.p if module.training and isinstance(module, nn.Dropout) else 0.0


def rescale(p: float) -> float:
    """Return what kept elements are multiplied by, so that their expectation is the input.

    It is exact for the rounded probability.
    """
    return _LEVELS / (_LEVELS - _threshold(p))


def _threshold(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)
