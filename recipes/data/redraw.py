"""New candidates of the train windows for each epoch, as the reference draws them at every access.

They are drawn as the frozen ones are, from a stream of their own: epoch 0 has the frozen ones.
"""

from pathlib import Path

import numpy as np

from recipes.artifacts import read_json
from recipes.data.candidates import BLOCK, CandidateStream
from recipes.data.notes import Negatives
from recipes.data.tables import PreparedData

RULE = "excluded"
"""Key of the manifest under which the rule for negatives stands (`prepare.negatives`)."""


def redrawn(data: PreparedData, folder: Path, epoch: int) -> np.ndarray:
    """The candidates of all train windows in an epoch.

    Args:
        data: The prepared tables.
        folder: Their folder, whose manifest tells how candidates are drawn.
        epoch: Number of the epoch, from 1.

    Returns:
        int64 [n, c].
    """
    manifest = read_json(folder / "manifest.json")
    config, rule = manifest["config"], manifest[RULE]
    split = data.split("train")
    stream = CandidateStream(
        data.num_items, config["num_candidates"], config["candidate_seed"], "train", epoch
    )
    parts = [
        stream.draw(_excluded(data, rule, rows), split.targets[rows], int(rows[0]))
        for rows in np.split(np.arange(len(split)), range(BLOCK, len(split), BLOCK))
    ]
    return np.concatenate(parts)


def _excluded(data: PreparedData, rule: Negatives, rows: np.ndarray) -> np.ndarray:
    if rule == "whole":
        return data.whole("train", rows)
    histories = data.split("train").histories[rows]
    return histories if rule == "visible" else histories[:, :0]
