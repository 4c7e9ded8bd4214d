"""Refuses a training that has diverged: no figure may come of it."""

import torch
from torch import Tensor, nn

LARGEST = 1e3
"""Nats a token. A uniform guess over a vocabulary of a million tokens costs 14."""


class DivergenceError(ValueError):
    """A training has diverged."""


def check_loss(loss: Tensor, what: str, rate: str) -> None:
    """Refuse a loss that is not finite, or beyond all measure.

    Args:
        loss: Mean cross entropy of a batch's tokens, or its share in an accumulated batch.
        what: What is trained, for messages.
        rate: The field of its learning rate and the value, such as `adapt.learning_rate=0.1`.

    Raises:
        DivergenceError: The training has diverged.
    """
    value = float(loss.detach())
    if not abs(value) < LARGEST:  # NaN is not less than anything
        raise DivergenceError(f"{what} has diverged (loss {value:g}): lower {rate}")


@torch.no_grad()
def check_weights(module: nn.Module, what: str, rate: str) -> None:
    """Refuse trained weights that are not finite (DivergenceError); see `check_loss`."""
    for name, weight in module.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise DivergenceError(f"{what} has diverged ({name} is not finite): lower {rate}")
