"""Selects the rows of a split that are evaluated."""

from dataclasses import dataclass

import numpy as np

from recipes.data.splits import SplitName
from recipes.data.tables import Split
from recipes.experiment import EvaluateConfig
from recipes.scoring.arrays import Ints


@dataclass(frozen=True)
class EvaluatedRows:
    """n rows of one split with their frozen candidates."""

    split: SplitName
    rows: Ints
    """int64 [n], ascending row numbers of the split."""
    user_ids: Ints
    """int64 [n], user id of each row."""
    targets: Ints
    """int64 [n], item ids."""
    candidates: Ints
    """int64 [n, c], item ids."""
    target_index: Ints
    """int64 [n]; column of the target in `candidates`."""

    @property
    def num_candidates(self) -> int:
        return self.candidates.shape[1]


def evaluated_rows(split: Split, config: EvaluateConfig) -> EvaluatedRows:
    """Select rows of a split by `rows` and `min_history`, then limit them to `max_users` users.

    The first users in the order of the split are kept, so the users of a smaller `max_users` are a
    prefix of those of a larger one.

    Raises:
        ValueError: Fewer than two users are left, a row's candidates do not contain its target
            exactly once, or a cut-off exceeds the number of candidates.
    """
    chosen = split.is_last.copy() if config.rows == "last" else np.ones_like(split.is_last)
    chosen &= split.history_lengths >= config.min_history
    rows = np.flatnonzero(chosen).astype(np.int64)
    if config.max_users is not None:
        users, first = np.unique(split.user_ids[rows], return_index=True)
        kept = users[np.argsort(first)][: config.max_users]
        rows = rows[np.isin(split.user_ids[rows], kept)]
    num_users = len(np.unique(split.user_ids[rows]))
    if num_users < 2:
        raise ValueError(
            f"{num_users} users of split {config.split!r} are left to evaluate, and intervals need "
            f"at least 2: raise evaluate.max_users ({config.max_users}), lower "
            f"evaluate.min_history ({config.min_history}), or prepare more users"
        )
    candidates, targets = split.candidates[rows], split.targets[rows]
    check_cutoffs(config.ks, candidates.shape[1])
    is_target = candidates == targets[:, None]
    wrong = np.flatnonzero(is_target.sum(axis=1) != 1)
    if len(wrong):
        raise ValueError(
            f"the candidates of row {rows[wrong[0]]} of split {config.split!r} do not hold the "
            "target exactly once: run the prepare stage again"
        )
    return EvaluatedRows(
        split=config.split,
        rows=rows,
        user_ids=split.user_ids[rows],
        targets=targets,
        candidates=candidates,
        target_index=is_target.argmax(axis=1).astype(np.int64),
    )


def check_cutoffs(ks: list[int], num_candidates: int) -> None:
    bad = [k for k in ks if not 1 <= k <= num_candidates]
    if bad:
        raise ValueError(
            f"evaluate.ks holds {bad}, but a row has {num_candidates} candidates: "
            f"keep cut-offs within 1..{num_candidates}"
        )
