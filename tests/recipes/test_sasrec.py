from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.experiment import RecommenderConfig
from recipes.recommenders.fit import Windows, fit, validate
from recipes.recommenders.ranking import Validation, target_ranks, validation
from recipes.recommenders.representations import encode
from recipes.recommenders.sasrec import Block, SASRec, attention_mask
from recipes.recommenders.train import build_model

NUM_ITEMS, WIDTH = 30, 6


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they give at these sizes, above all where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    config = RecommenderConfig(hidden_size=8, num_layers=2, num_heads=2, dropout=0.5)
    built = SASRec(config, num_items=NUM_ITEMS, max_history=WIDTH)
    for parameter in built.parameters():  # biases and norms start at 0 and 1: make them matter
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        built.items.weight[NUM_ITEMS].zero_()
    return built.eval()


def padded(*histories: list[int]) -> Tensor:
    return torch.tensor([[-1] * (WIDTH - len(history)) + history for history in histories])


def states(model, histories):
    """The state after each item, [rows, time, hidden], with every block over every position."""
    hidden, mask = model._embed(histories)
    for block in model.blocks:
        hidden = block(hidden, mask)
    return model.final_norm(hidden)


def test_a_later_item_never_changes_an_earlier_state(model: SASRec):
    histories = padded([3, 1, 4, 1, 5, 9], [2, 6, 5])
    before = states(model, histories)
    for column in range(1, WIDTH):
        changed = histories.clone()
        changed[:, column:] = 7
        after = states(model, changed)
        assert torch.equal(after[:, :column], before[:, :column])
        assert not torch.allclose(after[:, column:], before[:, column:])


def test_every_older_item_changes_the_representation(model: SASRec):
    before = model(padded([3, 1, 4, 1, 5, 9]))
    for column in range(WIDTH):
        changed = padded([3, 1, 4, 1, 5, 9])
        changed[0, column] = 7
        assert not torch.allclose(model(changed), before, atol=1e-4)


def test_left_padding_does_not_change_the_representation(model: SASRec):
    history = [3, 5, 2]
    for width in range(len(history), WIDTH + 1):
        row = torch.tensor([[-1] * (width - len(history)) + history])
        torch.testing.assert_close(model(row), model(torch.tensor([history])))


@pytest.mark.parametrize("group", [1, 2, 64])
def test_representations_are_the_newest_states_however_histories_are_grouped(
    model: SASRec, monkeypatch: pytest.MonkeyPatch, group: int
):
    monkeypatch.setattr("recipes.recommenders.sasrec.GROUP", group)
    histories = padded([3], [1, 4], [], [1, 5, 9, 2, 6, 5], [3, 5, 8], [7], [2, 7, 1, 8])
    newest = states(model, histories)[:, -1]
    torch.testing.assert_close(model(histories), newest)
    loss, same = (output.square().sum() for output in (model(histories), newest))
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    expected = torch.autograd.grad(same, list(model.parameters()), materialize_grads=True)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_no_histories_give_no_representations(model: SASRec):
    assert model(padded([1])[:0]).shape == (0, 8)


def test_the_order_of_items_matters(model: SASRec):
    assert not torch.allclose(model(padded([1, 2, 3])), model(padded([2, 1, 3])), atol=1e-4)


def test_a_batch_equals_its_rows_one_by_one(model: SASRec):
    histories = padded([3], [1, 4], [1, 5, 9, 2, 6, 5], [3, 5, 8])
    rows = torch.cat([model(row[None]) for row in histories])
    torch.testing.assert_close(model(histories), rows)


def test_an_empty_history_is_finite(model: SASRec):
    assert model(padded([], [1])).isfinite().all()


def test_a_history_wider_than_the_model_is_refused(model: SASRec):
    with pytest.raises(ValueError, match="width 7: this model was built for 6"):
        model(torch.zeros(1, WIDTH + 1, dtype=torch.int64))


def test_input_and_output_share_the_item_table_and_padding_learns_nothing(model: SASRec):
    scores = model(padded([1, 2], [3])) @ model.item_embeddings.T
    assert scores.shape == (2, NUM_ITEMS)
    scores.logsumexp(dim=1).sum().backward()
    gradient = model.items.weight.grad
    assert gradient is not None
    assert (gradient[:NUM_ITEMS] != 0).any(dim=1).all()
    assert (gradient[NUM_ITEMS] == 0).all()


def numpy_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = (x - x.mean()) / np.sqrt(x.var() + norm.eps)
    return centred * numpy_of(norm.weight) + numpy_of(norm.bias)


def naive_block(block: Block, rows: np.ndarray, real: np.ndarray, heads: int) -> np.ndarray:
    """Equations 2-6 of the paper for one sequence, position by position."""
    weights = [numpy_of(layer.weight) for layer in (block.query, block.key, block.value)]
    normed = np.stack([layer_norm(row, block.attention_norm) for row in rows])
    query, key, value = (normed @ weight.T for weight in weights)
    size = rows.shape[1] // heads
    result = np.zeros_like(rows)
    for i in range(len(rows)):
        seen = [j for j in range(i + 1) if real[j] or j == i]
        attended = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = np.array([query[i, part] @ key[j, part] / np.sqrt(size) for j in seen])
            weight = np.exp(logits) / np.exp(logits).sum()
            attended.append(sum(w * value[j, part] for w, j in zip(weight, seen, strict=True)))
        hidden = rows[i] + np.concatenate(attended)
        inner, outer = block.feed_forward[0], block.feed_forward[2]
        assert isinstance(inner, torch.nn.Linear)
        assert isinstance(outer, torch.nn.Linear)
        wide = numpy_of(inner.weight) @ layer_norm(hidden, block.feed_forward_norm)
        active = np.maximum(wide + numpy_of(inner.bias), 0)
        result[i] = hidden + numpy_of(outer.weight) @ active + numpy_of(outer.bias)
    return result


def test_a_block_equals_the_papers_equations_written_naively(model: SASRec):
    block = model.blocks[0]
    assert isinstance(block, Block)
    hidden = torch.randn(2, 5, 8)
    real = torch.tensor([[False, False, True, True, True], [True] * 5])
    computed = block(hidden, attention_mask(real))
    for row in range(2):
        naive = naive_block(block, numpy_of(hidden[row]), real[row].numpy(), heads=2)
        np.testing.assert_allclose(numpy_of(computed[row]), naive, atol=1e-5)


def test_the_loss_is_the_mean_cross_entropy_over_the_whole_catalogue(model: SASRec):
    histories, targets = padded([1, 2], [3], []), torch.tensor([7, 0, NUM_ITEMS - 1])
    nats = []
    for history, target in zip(histories, targets.tolist(), strict=True):
        scores = numpy_of(states(model, history[None])[0, -1]) @ numpy_of(model.item_embeddings).T
        nats.append(np.log(np.exp(scores).sum()) - scores[target])
    assert model.loss(histories, targets).item() == pytest.approx(np.mean(nats), rel=1e-5)


def test_dropout_acts_in_training_only(model: SASRec):
    histories = padded([1, 2, 3])
    model.train()
    assert not torch.equal(model(histories), model(histories))
    assert torch.equal(encode(model, histories), encode(model, histories))


def test_the_rank_counts_better_and_equal_items():
    items = torch.tensor([[3.0], [1.0], [2.0], [2.0], [0.0]])
    users = torch.ones(4, 1)
    assert target_ranks(users, items, torch.tensor([0, 2, 3, 4])).tolist() == [1, 3, 3, 5]


def test_ranks_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch):
    users, items = torch.randn(50, 4), torch.randn(20, 4)
    targets = torch.randint(20, (50,))
    whole = target_ranks(users, items, targets)
    monkeypatch.setattr("recipes.recommenders.ranking.CHUNK", 7)
    assert torch.equal(target_ranks(users, items, targets), whole)
    monkeypatch.setattr("recipes.recommenders.ranking.SCORES", 45)
    assert torch.equal(target_ranks(users, items, targets), whole)


def test_full_catalogue_scores_are_held_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    largest = 0

    class Spy(torch.Tensor):
        def __matmul__(self, other: Tensor) -> Tensor:
            nonlocal largest
            scores = self.as_subclass(Tensor) @ other
            largest = max(largest, scores.numel())
            return scores

    monkeypatch.setattr("recipes.recommenders.ranking.SCORES", 1000)
    users, items = torch.randn(70, 4).as_subclass(Spy), torch.randn(90, 4)
    target_ranks(users, items, torch.randint(90, (70,)))
    assert largest == 11 * 90


def test_validation_discounts_by_rank_and_stops_after_ten():
    summary = validation(torch.tensor([1, 3, 10, 11]))
    assert summary == Validation(
        ndcg_10=pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 4), hr_1=0.25
    )


def test_a_few_windows_are_learned_by_heart(tmp_path: Path):
    histories = padded([1], [2, 1], [3, 1], [4, 5, 6], [5, 4, 6], [7, 8, 9, 10, 11, 12])
    windows = Windows(histories, torch.tensor([5, 6, 7, 8, 9, 10]))
    config = RecommenderConfig(
        hidden_size=16, dropout=0.0, learning_rate=1e-2, max_epochs=60, patience=60
    )
    model = build_model(SASRec, config, NUM_ITEMS, WIDTH)
    curve = fit(model, windows, windows, config, tmp_path, "by heart")
    assert validate(model, windows).hr_1 == 1.0
    assert curve[-1].train_loss < 0.1 < 2.0 < curve[0].train_loss


def test_attention_in_training_is_that_of_evaluation(model: SASRec):
    block = model.blocks[0]
    assert isinstance(block, Block)
    hidden, mask = (
        torch.randn(2, 5, 8),
        attention_mask(torch.tensor([[False] * 2 + [True] * 3] * 2)),
    )
    expected = block(hidden, mask)
    block.train().dropout.p = block.dropout.threshold = 0
    torch.testing.assert_close(block(hidden, mask), expected)
