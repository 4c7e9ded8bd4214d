"""The Trainer's checkpoints: where a stage keeps them, and which one training can resume from."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from recipes.artifacts import read_json, sha256, write_json

CHECKPOINTS = "checkpoints"
"""Where an unfinished stage keeps them, in its folder."""
STATE = "trainer_state.json"
"""The file that the Trainer writes last into a checkpoint."""
SEAL = "seal.json"
"""SHA-256 of each file of a checkpoint, by its name."""


class Sealing(TrainerCallback):
    """Writes the checksums of a checkpoint's files beside them."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir() if path.name != SEAL)
            write_json(folder / SEAL, {name: sha256(folder / name) for name in names})


def last_complete_checkpoint(checkpoints: Path) -> tuple[Path, TrainerState] | None:
    """The newest complete checkpoint; newer, incomplete ones are deleted.

    A checkpoint is incomplete if its `trainer_state.json` is missing or truncated, because writing
    it was interrupted, or if a file is not the one that was written. It is complete without a seal
    if the process was killed between the two.

    Returns:
        Its folder and state; None if there is no complete checkpoint.
    """
    while checkpoints.is_dir() and (name := get_last_checkpoint(str(checkpoints))) is not None:
        try:
            if _is_sealed(Path(name)):
                return Path(name), TrainerState.load_from_json(str(Path(name) / STATE))
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            pass
        shutil.rmtree(name)
    return None


def _is_sealed(checkpoint: Path) -> bool:
    seal = checkpoint / SEAL
    return not seal.exists() or all(
        sha256(checkpoint / name) == digest for name, digest in read_json(seal).items()
    )
