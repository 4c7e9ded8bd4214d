import pytest
import torch
from torch import Tensor, nn

from recipes.recommenders.recurrence import gru

ACTIVE = [1, 1, 3, 4]
"""Rows of 4, 2, 2 and 1 items, which end together."""


def by_torch(layers: nn.GRU, inputs: Tensor) -> Tensor:
    """Each row alone, in torch's implementation; states step by step."""
    starts = [sum(ACTIVE[:step]) for step in range(len(ACTIVE))]
    found = torch.zeros(len(inputs), layers.hidden_size)
    for row in range(ACTIVE[-1]):
        places = [start + row for start, rows in zip(starts, ACTIVE, strict=True) if row < rows]
        found[places] = layers(inputs[places])[0]
    return found


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_states_and_gradients_are_those_of_torch(num_layers: int, newest: bool) -> None:
    torch.manual_seed(0)
    layers = nn.GRU(3, 5, num_layers, batch_first=True)
    inputs = torch.randn(sum(ACTIVE), 3, requires_grad=True)
    expected = by_torch(layers, inputs)[-ACTIVE[-1] if newest else 0 :]
    found = gru(layers, inputs, ACTIVE, newest)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    learned = [inputs, *layers.parameters()]
    gradients = torch.autograd.grad((found * weights).sum(), learned)
    others = torch.autograd.grad((expected * weights).sum(), learned)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other)
