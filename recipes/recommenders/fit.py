"""Trains a recommender on the train windows; training can resume after each epoch.

By default there are two deviations from SASRec's paper. One is the loss, see `losses.py`. The other
is that a window trains only the state at its newest item, since the windows already slide over
every position of a user. `recommender.positions: newest-window` trains the states at all items of
one window a user, as the paper does, and `all` those of few windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from recipes.experiment import RecommenderConfig
from recipes.recommenders.checkpoint import Epoch, Progress, load_checkpoint, save_checkpoint
from recipes.recommenders.ranking import Validation, target_ranks, validation
from recipes.recommenders.recommender import SequenceRecommender
from recipes.recommenders.representations import ENCODED_AT_ONCE, encode

DIVERGED = 10
"""A mean loss so many times that of guessing shows that a training has diverged."""


@dataclass(frozen=True)
class Windows:
    """Histories and the items that came next, as tensors."""

    histories: Tensor
    """int64 [rows, max_history], left-padded with -1."""

    targets: Tensor
    """int64 [rows], item ids."""


def fit(
    model: SequenceRecommender,
    train: Windows,
    val: Windows,
    config: RecommenderConfig,
    folder: Path,
    identity: str,
) -> list[Epoch]:
    """Train until validation NDCG@10 has not risen for `patience` epochs; keep the best weights.

    Args:
        model: A newly built model; in the end it holds the weights of the best epoch.
        train: Windows to train on.
        val: Windows for validation, by which training stops.
        config: Settings of the optimiser and of early stopping.
        folder: Folder of the checkpoint; the caller removes it once the result is written.
        identity: Identifies what is being trained, see `save_checkpoint`.

    Returns:
        Figures of each epoch, in order.

    Raises:
        ValueError: The training has diverged.
    """
    optimizer = build_optimizer(model, config)
    progress = load_checkpoint(folder, identity, model, optimizer)
    batches = -(-len(train.targets) // config.batch_size)
    with tqdm(
        total=config.max_epochs * batches,
        initial=len(progress.history) * batches,
        desc=model.about.title,
    ) as bar:
        while not _finished(progress, config):
            loss = train_epoch(model, optimizer, train, config, len(progress.history), bar.update)
            _refuse_diverged(model, loss, config, len(progress.history) + 1)
            score = validate(model, val)
            _advance(progress, model, loss, score)
            save_checkpoint(folder, identity, model, optimizer, progress)
            bar.set_postfix(loss=f"{loss:.3f}", ndcg_10=f"{score.ndcg_10:.4f}")
    model.load_state_dict(progress.best_weights)
    return progress.history


def _refuse_diverged(
    model: SequenceRecommender, loss: float, config: RecommenderConfig, epoch: int
) -> None:
    """Refuse an epoch's loss that is no number, or far above that of guessing (ValueError)."""
    guessing = max(model.loss_of_states.guessing, math.log(2))
    if not loss < DIVERGED * guessing:  # NaN is not
        raise ValueError(
            f"recommender.learning_rate={config.learning_rate}: the training of {model.name} "
            f"diverged in epoch {epoch}, with a loss of {loss:.3g} nats where guessing has "
            f"{guessing:.3g}: lower it"
        )


def validate(model: SequenceRecommender, windows: Windows) -> Validation:
    """Metrics on the full catalogue, over the given windows."""
    return validation(window_ranks(model, windows))


@torch.no_grad()
def window_ranks(model: SequenceRecommender, windows: Windows) -> Tensor:
    """Rank of each window's target in the full catalogue, from 1: int64 [rows].

    Apart from the result, memory does not grow with the number of rows or the catalogue.
    """
    chunks = zip(
        windows.histories.split(ENCODED_AT_ONCE),
        windows.targets.split(ENCODED_AT_ONCE),
        strict=True,
    )
    items = model.item_embeddings
    return torch.cat([target_ranks(encode(model, rows), items, wanted) for rows, wanted in chunks])


def build_optimizer(model: SequenceRecommender, config: RecommenderConfig) -> torch.optim.Adam:
    """Adam in PyTorch's fused implementation."""
    return torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _finished(progress: Progress, config: RecommenderConfig) -> bool:
    done = len(progress.history)
    return done >= config.max_epochs or done - progress.best_epoch >= config.patience


def _advance(
    progress: Progress, model: SequenceRecommender, loss: float, score: Validation
) -> None:
    best = max((epoch.val_ndcg_10 for epoch in progress.history), default=float("-inf"))
    number = len(progress.history) + 1
    progress.history.append(Epoch(number, loss, score.ndcg_10, score.hr_1))
    if score.ndcg_10 > best:
        progress.best_epoch = number
        progress.best_weights = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }


def train_epoch(
    model: SequenceRecommender,
    optimizer: torch.optim.Optimizer,
    train: Windows,
    config: RecommenderConfig,
    epoch: int,
    after_batch: Callable[[], object],
) -> float:
    """Train for one epoch and return the mean loss. `after_batch` is called after each batch."""
    model.train()
    total = 0.0
    # With a seed for each epoch, a resumed training draws the same numbers as an uninterrupted one.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 1_000_003 + epoch + 1)
        for rows in _shuffled(len(train.targets), config.batch_size):
            loss = model.loss(train.histories[rows], train.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            after_batch()
    return total / len(train.targets)


def _shuffled(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.randperm(count).split(size)
