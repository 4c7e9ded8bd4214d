"""The Trainer's checkpoints: where a stage keeps them, and which one training can resume from."""

import shutil
from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

CHECKPOINTS = "checkpoints"
"""Where an unfinished stage keeps them, in its folder."""
STATE = "trainer_state.json"
"""The file that the Trainer writes last into a checkpoint."""


def last_complete_checkpoint(checkpoints: Path) -> tuple[Path, TrainerState] | None:
    """The newest complete checkpoint; newer, incomplete ones are deleted.

    A checkpoint is incomplete if its `trainer_state.json` is missing or truncated, because writing
    it was interrupted.

    Returns:
        Its folder and state; None if there is no complete checkpoint.
    """
    while checkpoints.is_dir() and (name := get_last_checkpoint(str(checkpoints))) is not None:
        try:
            return Path(name), TrainerState.load_from_json(str(Path(name) / STATE))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(name)
    return None
