"""The recommender stage: prepared windows -> SASRec -> user representations, item embeddings."""

from dataclasses import asdict
from pathlib import Path

import torch

from recipes.artifacts import Record, read_record, run_stage, write_json, write_tensors
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData, Split
from recipes.experiment import RecommenderConfig
from recipes.recommender.checkpoint import drop_checkpoint
from recipes.recommender.fit import Windows, fit
from recipes.recommender.representations import encode
from recipes.recommender.sasrec import SASRec


def train_recommender(config: RecommenderConfig, data_folder: Path, folder: Path) -> Record:
    """Train SASRec on the train windows and encode every window.

    Training takes the train windows, validation the windows of the validation users (all of them,
    not only each user's last), both without those of fewer than `config.min_history` items.
    Representations are those of all windows of all splits, in order.

    Runs on the CPU: the model is small, and on one machine with a given number of threads the
    result is the same bit for bit. A killed run resumes after its last whole epoch.

    Files:
        model.safetensors: the weights of the best epoch.
        representations.safetensors: `train`, `val`, `test`: float32 [rows, hidden].
        items.safetensors: `embeddings`: float32 [num_items, hidden].
        history.json: a list of `Epoch`s.

    Raises:
        ValueError: A setting is out of range, or there is nothing to train on.
        FileNotFoundError: The data are not prepared.
    """
    check_config(config)
    prepared = read_record(data_folder, "prepare")
    return run_stage(
        "recommender",
        folder,
        config,
        {"prepare": prepared},
        lambda: _work(config, prepared, data_folder, folder),
    )


def build_model(config: RecommenderConfig, num_items: int, max_history: int) -> SASRec:
    """A fresh model; equal settings and seed give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SASRec(
            num_items=num_items,
            max_history=max_history,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
        )


def _work(config: RecommenderConfig, prepared: Record, data_folder: Path, folder: Path) -> None:
    data = PreparedData.load(data_folder)
    splits = {name: data.split(name) for name in SPLITS}
    train = _windows(splits["train"], config.min_history)
    val = _windows(splits["val"], config.min_history)
    model = build_model(config, data.num_items, train.histories.shape[1])
    identity = f"{prepared.fingerprint} {asdict(config)}"
    history = fit(model, train, val, config, folder / "checkpoint", identity)
    users = {name: encode(model, torch.tensor(split.histories)) for name, split in splits.items()}
    items = model.item_embeddings.detach()
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_tensors(folder / "representations.safetensors", users)
    write_tensors(folder / "items.safetensors", {"embeddings": items})
    write_json(folder / "history.json", [asdict(epoch) for epoch in history])
    drop_checkpoint(folder / "checkpoint")


def _windows(split: Split, min_history: int) -> Windows:
    kept = split.history_lengths >= min_history
    if not kept.any():
        raise ValueError(f"min_history={min_history}: no train or val window is as long; lower it")
    return Windows(torch.tensor(split.histories[kept]), torch.tensor(split.targets[kept]))


def check_config(config: RecommenderConfig) -> None:
    for name in ("hidden_size", "num_layers", "num_heads", "batch_size", "max_epochs", "patience"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least 1")
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"num_heads={config.num_heads} does not divide hidden_size={config.hidden_size}"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout}: must be in [0, 1)")
