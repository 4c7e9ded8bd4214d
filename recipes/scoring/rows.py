"""Selects the rows of a split that are evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipes.data.splits import SplitName
from recipes.data.tables import PreparedData, Split
from recipes.experiment import EvaluateConfig
from recipes.scoring.arrays import Ints


@dataclass(frozen=True)
class EvaluatedRows:
    """n rows of one split with their candidates."""

    split: SplitName
    rows: Ints
    """int64 [n], ascending row numbers of the split; each as often as there are draws."""
    user_ids: Ints
    """int64 [n], user id of each row."""
    targets: Ints
    """int64 [n], item ids."""
    candidates: Ints
    """int64 [n, c], item ids. Where all items are ranked, line i is 0 .. c-1 and all lines share
    their memory."""
    target_index: Ints
    """int64 [n]; column of the target in `candidates`."""
    draws: int = 1
    """Number of candidate sets that were drawn for each row of the split."""
    whole_catalogue: bool = False
    """Whether the candidates are all items, in the order of their ids."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_candidates(self) -> int:
        return self.candidates.shape[1]

    def chunk(self, start: int, stop: int) -> "EvaluatedRows":
        """The rows start .. stop-1."""
        return self.take(slice(start, stop))

    def take(self, part: slice | Ints) -> "EvaluatedRows":
        """Some of the rows, by their places."""
        return replace(
            self,
            rows=self.rows[part],
            user_ids=self.user_ids[part],
            targets=self.targets[part],
            candidates=self.candidates[part],
            target_index=self.target_index[part],
        )


def evaluated_rows(data: PreparedData, config: EvaluateConfig) -> EvaluatedRows:
    """Select rows of a split by `rows` and `min_history`, then limit them to `max_users` users.

    The first users in the order of the split are kept, so the users of a smaller `max_users` are a
    prefix of those of a larger one.

    Args:
        data: The prepared data.
        config: Split, rows, candidates and cut-offs.

    Raises:
        ValueError: Fewer than two users are left, no candidates were drawn, a row's candidates do
            not contain its target exactly once, or a cut-off exceeds the number of candidates.
    """
    split = data.split(config.split)
    rows = _selected(split, config)
    num_users = len(np.unique(split.user_ids[rows]))
    if num_users < 2:
        raise ValueError(
            f"{num_users} users of split {config.split!r} are left to evaluate, and intervals need "
            f"at least 2: raise evaluate.max_users ({config.max_users}), lower "
            f"evaluate.min_history ({config.min_history}), or prepare more users"
        )
    whole, further = config.candidates == "catalogue", split.further_candidates
    draws = 1 if whole or further is None else 1 + further.shape[1]
    if whole:
        candidates = np.broadcast_to(np.arange(data.num_items), (len(rows), data.num_items))
        check_cutoffs(config.ks, data.num_items, f"the catalogue has {data.num_items} items")
    else:
        if data.undrawn is not None:
            raise ValueError(
                f"evaluate.candidates='sampled': {data.undrawn}; or choose another "
                "prepare.negatives, or evaluate.candidates=catalogue, without a language model's "
                "arms"
            )
        candidates = split.candidates[rows]
        if further is not None:
            drawn = np.concatenate([candidates[:, None], further[rows]], axis=1)
            candidates = drawn.reshape(-1, candidates.shape[1])
        check_cutoffs(config.ks, candidates.shape[1])
    rows = np.repeat(rows, draws)
    targets = split.targets[rows]
    return EvaluatedRows(
        split=config.split,
        rows=rows,
        user_ids=split.user_ids[rows],
        targets=targets,
        candidates=candidates,
        target_index=targets if whole else _places(config, rows, candidates, targets),
        draws=draws,
        whole_catalogue=whole,
    )


def left_out(data: PreparedData, config: EvaluateConfig) -> dict[str, int]:
    """What `min_history` leaves out: `short_rows`, and `short_users`, who have no others."""
    split = data.split(config.split)
    every = replace(config, min_history=0, max_users=None)
    rows = _selected(split, every)
    kept = _selected(split, replace(every, min_history=config.min_history))
    users = np.setdiff1d(split.user_ids[rows], split.user_ids[kept])
    short = split.history_lengths[rows] < config.min_history
    return {"short_rows": int(short.sum()), "short_users": len(users)}


def _selected(split: Split, config: EvaluateConfig) -> Ints:
    chosen = split.history_lengths >= config.min_history
    if config.rows in ("last", None):  # None: outside of an experiment, which settles it
        chosen &= split.is_last
    rows = np.flatnonzero(chosen).astype(np.int64)
    if config.rows == "first":
        rows = rows[np.sort(np.unique(split.user_ids[rows], return_index=True)[1])]
    if config.max_users is not None:
        users, first = np.unique(split.user_ids[rows], return_index=True)
        kept = users[np.argsort(first)][: config.max_users]
        rows = rows[np.isin(split.user_ids[rows], kept)]
    return rows


def _places(config: EvaluateConfig, rows: Ints, candidates: Ints, targets: Ints) -> Ints:
    """Column of each row's target in its candidates: int64 [n]."""
    is_target = candidates == targets[:, None]
    wrong = np.flatnonzero(is_target.sum(axis=1) != 1)
    if len(wrong):
        raise ValueError(
            f"the candidates of row {rows[wrong[0]]} of split {config.split!r} do not hold the "
            "target exactly once: run the prepare stage again"
        )
    return is_target.argmax(axis=1).astype(np.int64)


def check_cutoffs(ks: Sequence[int], most: int, what: str | None = None) -> None:
    """Refuse cut-offs beyond what is ranked (ValueError).

    Args:
        ks: `evaluate.ks`.
        most: Number of candidates in a row.
        what: Says so in the message; None stands for `a row has .. candidates`.
    """
    bad = [k for k in ks if not 1 <= k <= most]
    if bad:
        raise ValueError(
            f"evaluate.ks holds {bad}, but {what or f'a row has {most} candidates'}: "
            f"keep cut-offs within 1..{most}"
        )
