"""The Trainer's checkpoints: which belong to a stage, and which can be resumed from."""

import shutil
from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

STATE = "trainer_state.json"
"""The file of a checkpoint that the Trainer writes last."""


def checkpoint_folder(folder: Path, fingerprint: str) -> Path:
    """Where a stage's checkpoints go; those of another configuration are removed.

    Args:
        folder: The stage's.
        fingerprint: Of the stage as configured now: no other may resume from these checkpoints.
    """
    wanted = folder / f"checkpoints-{fingerprint[:16]}"
    for other in folder.glob("checkpoints-*"):
        if other != wanted:
            shutil.rmtree(other)
    return wanted


def last_complete_checkpoint(checkpoints: Path) -> tuple[Path, TrainerState] | None:
    """The newest checkpoint that was written to its end; newer, broken ones are removed.

    A checkpoint whose `trainer_state.json` is missing or cut off was interrupted while it was
    written.
    """
    while checkpoints.is_dir() and (name := get_last_checkpoint(str(checkpoints))) is not None:
        try:
            return Path(name), TrainerState.load_from_json(str(Path(name) / STATE))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(name)
    return None
