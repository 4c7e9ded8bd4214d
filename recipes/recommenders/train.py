"""Stage `recommender`: windows -> a trained network -> user representations, item embeddings."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recipes.artifacts import write_json, write_tensors
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData, Split
from recipes.datasets.ordering import run_starts
from recipes.experiment import RecommenderConfig
from recipes.ranges import check_ranges
from recipes.recommenders.checkpoint import drop_checkpoint
from recipes.recommenders.fit import Windows, fit
from recipes.recommenders.losses import check_loss, make_loss
from recipes.recommenders.recommender import LOCATED, SequenceRecommender
from recipes.recommenders.representations import encode
from recipes.records import Stage


def recommender_stage(
    recommender: type[SequenceRecommender],
    config: RecommenderConfig,
    prepared: Mapping[str, str],
    own: Mapping[str, str] | None = None,
) -> Stage:
    """The stage as a record describes it: everything that determines a trained recommender.

    Args:
        recommender: Class of the network.
        config: Settings of the network and its training; where files lie is left out.
        prepared: Checksums of the prepare stage's files. The candidates' is not used, since
            training does not read them.
        own: Checksums of what else the network reads.
    """
    read = {name: prepared[name] for name in ("examples.parquet", "items.parquet")}
    read |= own or {}
    settings = {**asdict(config), **dict.fromkeys(LOCATED), "name": recommender.name}
    return Stage(f"recommender {recommender.name}", settings, read, recommender.version)


def train_recommender(
    recommender: type[SequenceRecommender],
    config: RecommenderConfig,
    data: PreparedData,
    folder: Path,
    identity: str,
) -> None:
    """Train a network on the train windows and encode every window.

    Training uses the windows of the train users; validation uses those of the validation users, all
    of them and not only each user's last one. Windows with fewer than `config.min_history` items in
    their history are left out of both. With `positions: all`, a user's train sequence is cut into
    windows, the newest first, which train the states at all their items, the first included,
    whatever `min_history`; validation is the same. `newest-window` keeps the newest of them.
    Representations are computed for all windows of all splits, in order.

    Training runs on the CPU: the model is small, and on one machine with a given number of threads
    the result is the same bit for bit. A killed run resumes after its last complete epoch.

    Files:
        model.safetensors: the weights of the best epoch.
        representations.safetensors: `train`, `val` and `test`, float32 [rows, hidden] each.
        items.safetensors: `embeddings`, float32 [num_items, hidden].
        history.json: a list of `Epoch`s.

    Args:
        recommender: Class of the network.
        config: Settings of the network and its training.
        data: The prepared data of the run.
        folder: The stage's folder, into which the files are written.
        identity: The stage's fingerprint; a checkpoint with another one is ignored.

    Raises:
        ValueError: See `check_fits`; or the training has diverged.
    """
    splits = {name: data.split(name) for name in SPLITS}
    train = _taken(splits["train"], _trained(splits["train"], config))
    val = _taken(splits["val"], _long_enough(splits["val"], config))
    model = build_model(recommender, config, data.num_items, train.histories.shape[1])
    model.prepare(data)
    history = fit(model, train, val, config, folder / "checkpoint", identity)
    users = {name: encode(model, torch.tensor(split.histories)) for name, split in splits.items()}
    items = model.item_embeddings.detach()
    if not all(torch.isfinite(found).all() for found in (items, *users.values())):
        raise ValueError(
            f"recommender.learning_rate={config.learning_rate}: the training of {model.name} "
            "diverged, and its vectors are not finite: lower it"
        )
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_tensors(folder / "representations.safetensors", users)
    write_tensors(folder / "items.safetensors", {"embeddings": items})
    write_json(folder / "history.json", [asdict(epoch) for epoch in history])
    drop_checkpoint(folder / "checkpoint")


def build_model(
    recommender: type[SequenceRecommender],
    config: RecommenderConfig,
    num_items: int,
    max_history: int,
) -> SequenceRecommender:
    """A new model; equal settings, seed included, give equal initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = recommender(config, num_items, max_history)
    if config.initial_std is not None:
        _rescale(model, config.initial_std)
    return model


@torch.no_grad()
def _rescale(model: SequenceRecommender, std: float) -> None:
    """Give all embeddings another standard deviation than they were drawn with."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight *= std * module.embedding_dim**0.5


def _trained(split: Split, config: RecommenderConfig) -> np.ndarray:
    """The rows of the train split that are trained on, bool [n] (ValueError if none is)."""
    if config.positions == "newest":
        return _long_enough(split, config)
    kept = split.is_last if config.positions == "newest-window" else _pieces(split)
    kept = kept & (split.history_lengths > 0)
    if not kept.any():
        raise ValueError(
            f"recommender.positions={config.positions!r}: no train user has two items; use newest"
        )
    return kept


def _pieces(split: Split) -> np.ndarray:
    """Windows that together hold each of a user's items but the first as a target once: bool [n].

    They are a user's last one, the one that ends where its history begins, and so on.
    """
    starts = run_starts(split.user_ids)
    ends = np.append(starts[1:], len(split)) - 1
    back = np.repeat(ends, np.diff(starts, append=len(split))) - np.arange(len(split))
    return back % split.histories.shape[1] == 0


def _long_enough(split: Split, config: RecommenderConfig) -> np.ndarray:
    """The rows with a history of `min_history` items, bool [n] (ValueError if none has)."""
    kept = split.history_lengths >= config.min_history
    if not kept.any():
        raise ValueError(
            f"recommender.min_history={config.min_history}: no train or val window is as long; "
            "lower it"
        )
    return kept


def _taken(split: Split, kept: np.ndarray) -> Windows:
    return Windows(torch.tensor(split.histories[kept]), torch.tensor(split.targets[kept]))


def check_fits(config: RecommenderConfig, data: PreparedData) -> None:
    """Refuse settings that do not fit the data, before anything is trained.

    Raises:
        ValueError: No window is left to train on or to validate with, or there are too few items
            for `config.num_negatives`.
    """
    make_loss(config, data.num_items)
    _trained(data.split("train"), config)
    _long_enough(data.split("val"), config)


def check_config(recommender: type[SequenceRecommender], config: RecommenderConfig) -> None:
    """Refuse impossible values before anything is read.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(config, "recommender.")
    check_loss(config)
    if config.positions != "newest" and recommender.states is SequenceRecommender.states:
        raise ValueError(
            f"recommender.positions={config.positions!r}: {recommender.name} has no state at each "
            "item; choose newest"
        )
    recommender.check(config)
