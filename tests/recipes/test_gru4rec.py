import pytest
import torch
from torch import Tensor

from recipes.experiment import RecommenderConfig
from recipes.recommenders.gru4rec import GRU4Rec

NUM_ITEMS, WIDTH = 30, 6


@pytest.fixture
def model() -> GRU4Rec:
    torch.manual_seed(0)
    config = RecommenderConfig(hidden_size=8, state_size=12, num_layers=2, dropout=0.5)
    return GRU4Rec(config, NUM_ITEMS, WIDTH).eval()


def padded(*histories: list[int], width: int = WIDTH) -> Tensor:
    return torch.tensor([[-1] * (width - len(history)) + history for history in histories])


def by_hand(model: GRU4Rec, history: list[int]) -> Tensor:
    """Cho et al.'s equations as torch states them, one item and one layer at a time."""
    inputs = [model.items.weight[item] for item in history]
    for layer in range(2):
        weights = {name: getattr(model.recurrence, f"{name}_l{layer}") for name in NAMES}
        state, states = torch.zeros(12), []
        for x in inputs:
            own = (weights["weight_ih"] @ x + weights["bias_ih"]).split(12)
            old = (weights["weight_hh"] @ state + weights["bias_hh"]).split(12)
            reset, update = torch.sigmoid(own[0] + old[0]), torch.sigmoid(own[1] + old[1])
            new = torch.tanh(own[2] + reset * old[2])
            state = (1 - update) * new + update * state
            states.append(state)
        inputs = states
    return model.output(inputs[-1])


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def test_representations_are_those_of_the_equations(model: GRU4Rec) -> None:
    histories = [[3, 1, 4, 1, 5, 9], [2, 6], [5]]
    expected = torch.stack([by_hand(model, history) for history in histories])
    torch.testing.assert_close(model(padded(*histories)), expected)


def test_left_padding_does_not_change_the_representation(model: GRU4Rec) -> None:
    expected = model(padded([3, 5, 2], width=3))
    for width in range(3, 9):
        torch.testing.assert_close(model(padded([3, 5, 2], width=width)), expected)


def test_the_order_of_items_and_each_item_matter(model: GRU4Rec) -> None:
    before = model(padded([3, 1, 4, 1, 5, 9]))
    assert not torch.allclose(model(padded([3, 1, 4, 5, 1, 9])), before)
    for place in range(WIDTH):
        changed = [3, 1, 4, 1, 5, 9]
        changed[place] = 7
        assert not torch.allclose(model(padded(changed)), before)


def test_an_empty_history_is_finite_and_padding_is_never_trained(model: GRU4Rec) -> None:
    assert model(padded([])).isfinite().all()
    model.train().loss(padded([3, 1], [2, 2, 2]), torch.tensor([4, 5])).backward()
    assert model.items.weight.grad is not None
    assert (model.items.weight.grad[NUM_ITEMS] == 0).all()
    assert model.item_embeddings.shape == (NUM_ITEMS, 8)
