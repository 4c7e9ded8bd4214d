"""Stage `recommender`: windows -> a trained network -> user representations, item embeddings."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from recipes.artifacts import write_json, write_tensors
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData, Split
from recipes.experiment import RecommenderConfig
from recipes.ranges import check_ranges
from recipes.recommenders.checkpoint import drop_checkpoint
from recipes.recommenders.fit import Windows, fit
from recipes.recommenders.recommender import SequenceRecommender
from recipes.recommenders.representations import encode
from recipes.records import Stage


def recommender_stage(
    recommender: type[SequenceRecommender], config: RecommenderConfig, prepared: Mapping[str, str]
) -> Stage:
    """The stage as a record describes it: everything that determines a trained recommender.

    Args:
        recommender: Class of the network.
        config: Settings of the network and its training.
        prepared: Checksums of the prepare stage's files. The candidates' is not used, since
            training does not read them.
    """
    read = {name: prepared[name] for name in ("examples.parquet", "items.parquet")}
    settings = {**asdict(config), "name": recommender.name}
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
    their history are left out of both. Representations are computed for all windows of all splits,
    in order.

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
        ValueError: `config.min_history` leaves no window to train on or to validate with.
    """
    splits = {name: data.split(name) for name in SPLITS}
    train = _windows(splits["train"], config.min_history)
    val = _windows(splits["val"], config.min_history)
    model = build_model(recommender, config, data.num_items, train.histories.shape[1])
    history = fit(model, train, val, config, folder / "checkpoint", identity)
    users = {name: encode(model, torch.tensor(split.histories)) for name, split in splits.items()}
    items = model.item_embeddings.detach()
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
        return recommender(config, num_items, max_history)


def _windows(split: Split, min_history: int) -> Windows:
    kept = split.history_lengths >= min_history
    if not kept.any():
        raise ValueError(f"min_history={min_history}: no train or val window is as long; lower it")
    return Windows(torch.tensor(split.histories[kept]), torch.tensor(split.targets[kept]))


def check_config(recommender: type[SequenceRecommender], config: RecommenderConfig) -> None:
    """Refuse impossible values before anything is read.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(config, "recommender.")
    recommender.check(config)
