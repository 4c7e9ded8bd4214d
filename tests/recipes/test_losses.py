import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipes.experiment import RecommenderConfig
from recipes.recommenders import losses
from recipes.recommenders.caser import Caser
from recipes.recommenders.gru4rec import GRU4Rec
from recipes.recommenders.losses import Loss, make_loss, unseen
from recipes.recommenders.recommender import SequenceRecommender
from recipes.recommenders.sasrec import SASRec
from recipes.recommenders.sasrec_post_norm import SASRecPostNorm
from recipes.recommenders.train import build_model, check_config

NUM_ITEMS, WIDTH = 12, 5
SMALL = RecommenderConfig(hidden_size=4, num_layers=1, state_size=6, dropout=0.0)


def padded(*histories: list[int]) -> Tensor:
    return torch.tensor([[-1] * (WIDTH - len(history)) + history for history in histories])


def loss_of(scores: list[list[float]], targets: list[int], loss: Loss, seen: Tensor) -> float:
    """The loss of states with the given scores of all items."""
    states, items = torch.tensor(scores), torch.eye(len(scores[0]))
    return loss(states, items, torch.tensor(targets), seen, torch.arange(len(states))).item()


def named(loss: str, num_items: int, negatives: int | None = None) -> Loss:
    return make_loss(RecommenderConfig(loss=loss, num_negatives=negatives), num_items)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------- by hand


def test_cross_entropy_compares_with_the_whole_catalogue() -> None:
    scores = [[math.log(2), 0.0, 0.0]]
    found = loss_of(scores, [0], named("cross-entropy", 3), padded([1]))
    assert found == pytest.approx(-math.log(2 / 4))


def test_sampled_softmax_compares_with_the_drawn_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.torch, "randperm", lambda count: torch.tensor([3, 1, 0, 2]))
    scores = [[math.log(2), math.log(3), math.log(5), math.log(7)]] * 2
    # Drawn are 3 and 1. The second row's target is among them and is not counted twice.
    expected = -(math.log(2 / (2 + 7 + 3)) + math.log(3 / (3 + 7))) / 2
    found = loss_of(scores, [0, 1], named("sampled-softmax", 4, 2), padded([2], [2]))
    assert found == pytest.approx(expected)


def test_binary_cross_entropy_takes_the_target_and_its_own_random_items() -> None:
    # Items 0 and 1 are seen, so that item 2 is the only one to be drawn, here twice.
    scores = [[0.0, math.log(3), math.log(4)]]
    found = loss_of(scores, [1], named("bce", 3, 2), torch.tensor([[-1, 0, 1]]))
    assert found == pytest.approx(-math.log(3 / 4) - 2 * math.log(1 / 5))


@pytest.mark.parametrize(
    ("loss", "guessing"),
    [
        ("cross-entropy", math.log(9)),
        ("sampled-softmax", math.log(1 + 3)),
        ("bce", 4 * math.log(2)),
    ],
)
def test_equal_scores_have_the_loss_of_guessing(loss: str, guessing: float) -> None:
    made = named(loss, 9, None if loss == "cross-entropy" else 3)
    assert made.guessing == pytest.approx(guessing)
    torch.manual_seed(1)  # a draw without the target
    found = loss_of([[0.0] * 9] * 2, [8, 8], made, torch.tensor([[8], [8]]))
    assert found == pytest.approx(guessing, rel=1e-6) or loss == "sampled-softmax"


def test_sampled_softmax_with_all_items_is_the_cross_entropy() -> None:
    made = named("sampled-softmax", 7)
    made.num_negatives = 7
    scores, seen = torch.randn(5, 7).tolist(), torch.zeros(5, 1, dtype=torch.int64)
    full = loss_of(scores, [0, 3, 6, 3, 1], named("cross-entropy", 7), seen)
    assert loss_of(scores, [0, 3, 6, 3, 1], made, seen) == pytest.approx(full)


# ---------------------------------------------------------------------- draws


@settings(max_examples=40, deadline=None)
@given(
    seen=st.lists(st.lists(st.integers(-1, 8), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_every_unseen_item_is_drawn_and_no_seen_one(seen: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    rows = torch.arange(len(seen)).repeat(2)
    drawn = unseen(torch.tensor(seen), rows, num_items=9, count=200)
    for line, row in zip(drawn.tolist(), rows.tolist(), strict=True):
        assert set(line) == set(range(9)) - set(seen[row])


def test_unseen_items_are_drawn_uniformly() -> None:
    torch.manual_seed(0)
    drawn = unseen(torch.tensor([[4, -1, 4, 0]]), torch.zeros(1, dtype=torch.int64), 6, 40_000)
    shares = drawn.flatten().bincount(minlength=6) / 40_000
    expected = torch.tensor([0, 0.25, 0.25, 0.25, 0, 0.25])
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)  # 4.6 standard errors


def test_a_history_of_all_items_leaves_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="a history has all 3 items"):
        unseen(torch.tensor([[0, 1, 2]]), torch.tensor([0]), 3, 1)


# ---------------------------------------------------------------------- positions


def representation(model: SequenceRecommender, history: list[int], later: int = 0) -> Tensor:
    """Of a history alone, at the positions it has in a window with `later` items after it."""
    if not isinstance(model, SASRec):
        return model(padded(history))[0]
    moved = copy.deepcopy(model)
    weight = model.positions.weight
    moved.positions.weight = torch.nn.Parameter(weight.roll(later, dims=0))
    return moved(padded(history))[0]


def naive(
    model: SequenceRecommender, histories: Tensor, targets: Tensor, item_loss: Callable
) -> float:
    """The mean over all items of all windows, each predicted from a history of its own."""
    found = []
    for history, target in zip(histories.tolist(), targets.tolist(), strict=True):
        items = [item for item in history if item >= 0] + [target]
        for end in range(1, len(items)):
            state = representation(model, items[:end], later=len(items) - 1 - end)
            found.append(item_loss(model.item_embeddings @ state, items[end]).item())
    return sum(found) / len(found)


@pytest.mark.parametrize("network", [SASRec, SASRecPostNorm, GRU4Rec])
def test_all_positions_train_the_state_at_each_item(network: type[SequenceRecommender]) -> None:
    model = build_model(network, replace(SMALL, positions="all"), NUM_ITEMS, WIDTH)
    histories, targets = padded([3, 1, 4, 1, 5], [2, 6], [7]), torch.tensor([9, 5, 8])
    expected = naive(model, histories, targets, lambda scores, item: -scores.log_softmax(0)[item])
    assert model.loss(histories, targets).item() == pytest.approx(expected, rel=1e-5)


def test_all_positions_draw_a_negative_each_outside_the_window() -> None:
    config = replace(SMALL, positions="all", loss="bce")
    model = build_model(SASRec, config, 4, WIDTH)
    histories, targets = padded([3, 1], [2]), torch.tensor([0, 1])

    def with_the_only_unseen(scores: Tensor, item: int) -> Tensor:
        return -scores[item].sigmoid().log() - (1 - scores[2].sigmoid()).log()

    # The first window leaves item 2 alone; the second, of three items, leaves 0 and 3.
    found = model.loss(histories[:1], targets[:1]).item()
    expected = naive(model, histories[:1], targets[:1], with_the_only_unseen)
    assert found == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(model.loss(histories, targets).item())


@pytest.mark.parametrize("network", [SASRec, SASRecPostNorm, GRU4Rec])
def test_a_state_is_that_of_the_history_that_ends_there(
    network: type[SequenceRecommender],
) -> None:
    model = build_model(network, SMALL, NUM_ITEMS, WIDTH).eval()
    states = model.states(padded([3, 1, 4], []))
    assert states.shape == (2, WIDTH, 4)
    assert states.isfinite().all()
    alone = [
        representation(model, history, later)
        for history, later in (([3], 2), ([3, 1], 1), ([3, 1, 4], 0))
    ]
    torch.testing.assert_close(states[0, 2:], torch.stack(alone))


@pytest.mark.parametrize("loss", ["cross-entropy", "sampled-softmax", "bce"])
@pytest.mark.parametrize("network", [SASRec, GRU4Rec, Caser])
def test_every_loss_trains_every_network(network: type[SequenceRecommender], loss: str) -> None:
    negatives = None if loss == "cross-entropy" else 3
    config = replace(SMALL, hidden_size=16, loss=loss, num_negatives=negatives)
    model = build_model(network, config, NUM_ITEMS, WIDTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    histories, targets = padded([3, 1, 4], [2, 6], [7]), torch.tensor([9, 5, 8])
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(histories, targets).backward()
        optimizer.step()
    scores = model(histories) @ model.item_embeddings.T
    assert scores.argmax(dim=1).tolist() == targets.tolist()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        (SASRec, {"num_negatives": 5}, "recommender.num_negatives=5 belongs to a loss that draws"),
        (Caser, {"positions": "all"}, "positions='all': caser has no state at each item"),
        (Caser, {"positions": "newest-window"}, "positions='newest-window': caser has no state"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    network: type[SequenceRecommender], change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(network, replace(SMALL, **change))


@pytest.mark.parametrize("loss", ["sampled-softmax", "bce"])
def test_more_negatives_than_other_items_are_refused(loss: str) -> None:
    with pytest.raises(ValueError, match="num_negatives=12: a target has only 11 other items"):
        named(loss, 12, 12)
    assert named(loss, 12, 11).num_negatives == 11
    assert named("sampled-softmax", 12).num_negatives == 11
