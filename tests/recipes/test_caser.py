import pytest
import torch
from torch import Tensor

from recipes.experiment import RecommenderConfig
from recipes.recommenders.caser import Caser

NUM_ITEMS, WIDTH, HIDDEN = 30, 4, 8


@pytest.fixture
def model() -> Caser:
    torch.manual_seed(0)
    config = RecommenderConfig(
        hidden_size=HIDDEN, horizontal_filters=3, vertical_filters=2, dropout=0.5
    )
    return Caser(config, NUM_ITEMS, WIDTH).eval()


def padded(*histories: list[int], width: int = WIDTH) -> Tensor:
    return torch.tensor([[-1] * (width - len(history)) + history for history in histories])


def by_hand(model: Caser, history: list[int]) -> Tensor:
    """Equations 3-9 of the paper, filter by filter."""
    rows = [torch.zeros(HIDDEN)] * (WIDTH - len(history))
    image = torch.stack(rows + [model.items.weight[item] for item in history])
    found = []
    for height in range(1, WIDTH + 1):
        convolve = model.horizontal[height - 1]
        assert isinstance(convolve, torch.nn.Conv1d) and convolve.bias is not None
        for weight, bias in zip(convolve.weight, convolve.bias, strict=True):
            places = [image[top : top + height] for top in range(WIDTH - height + 1)]
            values = [torch.relu((weight.T * place).sum() + bias) for place in places]
            found.append(torch.stack(values).max())
    across = torch.stack(found)
    down = torch.stack([model.vertical.weight @ column for column in image.T]).flatten()
    return torch.relu(model.output(torch.cat([across, down])))


def test_representations_are_those_of_the_equations(model: Caser) -> None:
    histories = [[3, 1, 4, 1], [2, 6], [5]]
    expected = torch.stack([by_hand(model, history) for history in histories])
    torch.testing.assert_close(model(padded(*histories)), expected)


def test_narrower_histories_are_padded_and_wider_ones_refused(model: Caser) -> None:
    expected = model(padded([3, 5]))
    torch.testing.assert_close(model(padded([3, 5], width=2)), expected)
    with pytest.raises(ValueError, match="histories of width 5: this model was built for 4"):
        model(padded([1, 2, 3, 4, 5], width=5))


def test_an_empty_history_is_finite_and_padding_is_never_trained(model: Caser) -> None:
    assert model(padded([])).isfinite().all()
    model.train().loss(padded([3, 1], [2, 2, 2]), torch.tensor([4, 5])).backward()
    assert model.items.weight.grad is not None
    assert (model.items.weight.grad[NUM_ITEMS] == 0).all()
    assert model.item_embeddings.shape == (NUM_ITEMS, HIDDEN)
