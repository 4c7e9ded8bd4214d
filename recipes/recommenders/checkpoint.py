"""Checkpoints after each epoch, from which an interrupted training resumes to the same result.

`checkpoint.json` names the file of tensors and is replaced last, so that a kill at any moment
leaves either the old pair of files or the new one. A checkpoint holds no random state, because
every epoch draws from a seed of its own.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from recipes.artifacts import read_json, read_tensors, sha256, write_json, write_tensors

INDEX = "checkpoint.json"


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch (an entry of `history.json`)."""

    epoch: int
    """Number of the epoch, from 1."""
    train_loss: float
    """Mean loss of the epoch (`recommender.loss`) in nats, computed with dropout."""
    val_ndcg_10: float
    val_hr_1: float


@dataclass
class Progress:
    """The state of a training besides the current weights and the optimiser's state."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    """Number of the epoch with the best validation NDCG@10; 0 before the first epoch."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, identity: str, model: nn.Module, optimizer: Optimizer, progress: Progress
) -> None:
    """Write the state after the last epoch of `progress.history`.

    Args:
        folder: The checkpoint's own folder; created if missing.
        identity: Identifies what is being trained: a checkpoint of another identity is ignored.
        model: The model, with its current weights.
        optimizer: Adam, whose state is saved parameter by parameter.
        progress: Figures of the epochs so far, and the best weights.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    name = f"epoch-{len(progress.history):04d}.safetensors"
    write_tensors(folder / name, tensors)
    index = {
        "identity": identity,
        "tensors": name,
        "sha256": sha256(folder / name),
        "best_epoch": progress.best_epoch,
        "history": [asdict(epoch) for epoch in progress.history],
    }
    write_json(folder / INDEX, index)
    for path in folder.glob("epoch-*.safetensors"):
        if path.name != name:
            path.unlink()


def load_checkpoint(
    folder: Path, identity: str, model: nn.Module, optimizer: Optimizer
) -> Progress:
    """Load the saved state into `model` and `optimizer`, if there is one of this identity.

    Returns:
        The saved progress; an empty one if there is nothing to resume from, or it is damaged.
    """
    index = _index(folder)
    if index is None or index["identity"] != identity:
        return Progress()
    tensors = read_tensors(folder / index["tensors"])
    model.load_state_dict(_under("model.", tensors))
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        number, key = name.split(".", 1)
        state["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(state)
    return Progress(
        history=[Epoch(**epoch) for epoch in index["history"]],
        best_epoch=index["best_epoch"],
        best_weights=_under("best.", tensors),
    )


def _index(folder: Path) -> dict[str, Any] | None:
    """The content of `checkpoint.json`, if it and its tensors are there and whole."""
    try:
        index = read_json(folder / INDEX)
        whole = sha256(folder / index["tensors"]) == index["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint, if any."""
    if folder.exists():
        shutil.rmtree(folder)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
