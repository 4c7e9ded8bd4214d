"""Interactions -> train, validation and test, by a protocol.

`llara` and `chronological` split users, 8:1:1 in order of their first timestamps; no user is in two
splits. This is LLaRA's split. It is no split of time: users who start late also end late, but a
train user's later items may follow a test user's first ones.

`leave-one-out` takes each user's last interaction for testing and the one before for validation;
the rest is for training, and so is all of a user with fewer than three interactions.

`temporal` cuts time twice, for all users alike: what precedes the first cut is for training, what
follows the second one is for testing. Interactions of equal time are never on two sides of a cut.
"""

from typing import Literal

import numpy as np
import pandas as pd

from recipes.data.order import tied_rows, times
from recipes.datasets.ordering import run_starts

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(len(SPLITS))
MIN_USERS = 6
"""The least n from which on `int(0.8 n)` < `int(0.9 n)` < n, so that no split is empty."""
FEWEST_LEFT_OUT = 3
"""Interactions of a user from which `leave-one-out` has one for each split."""


def assign_splits(interactions: pd.DataFrame, protocol: str, holdout: float) -> pd.DataFrame:
    """Add the column `split` (categories `SPLITS`).

    Args:
        interactions: Columns user_id, timestamp and any others; users one after the other in order
            of their ranks, each user's rows in order, as `in_order` leaves them.
        protocol: Name of the protocol.
        holdout: Share of the interactions in validation, and as many in test, under `temporal`.

    Raises:
        ValueError: There are no interactions, a split would have none, or the protocol needs times
            and there are none; the message names the remedy.
    """
    if not len(interactions):
        raise ValueError(
            "the dataset's filters leave no interactions to split: check that the files of "
            "prepare.source are whole"
        )
    starts = run_starts(interactions["user_id"].to_numpy())
    if protocol == "leave-one-out":
        codes = _leave_one_out(starts, len(interactions))
    elif protocol == "temporal":
        codes = _temporal(times(interactions), holdout)
    else:
        codes = _by_user(starts, len(interactions))
    split = pd.Categorical.from_codes(codes, list(SPLITS))
    return interactions.assign(split=split)


def left_out_by_ties(interactions: pd.DataFrame) -> np.ndarray:
    """The interactions that `prepare.ties: drop` makes the target of no window: bool [n].

    Args:
        interactions: Columns user_id, timestamp and split, in order.

    Returns:
        Whether an interaction is of validation or test and has the time of another of its user.
    """
    return (interactions["split"] != SPLITS[TRAIN]).to_numpy() & tied_rows(interactions)


def _by_user(starts: np.ndarray, count: int) -> np.ndarray:
    users = len(starts)
    if users < MIN_USERS:
        raise ValueError(
            f"{users} users cannot be split 8:1:1; give at least {MIN_USERS}, or choose "
            "prepare.protocol=leave-one-out"
        )
    codes = np.zeros(count, np.int8)
    codes[starts[int(0.8 * users)] :] = VAL
    codes[starts[int(0.9 * users)] :] = TEST
    return codes


def _leave_one_out(starts: np.ndarray, count: int) -> np.ndarray:
    ends = np.append(starts[1:], count)
    ends = ends[np.diff(starts, append=count) >= FEWEST_LEFT_OUT]
    if not len(ends):
        raise ValueError(
            f"no user has {FEWEST_LEFT_OUT} interactions or more, so prepare.protocol="
            "'leave-one-out' leaves none for validation and test: choose prepare.protocol=temporal"
        )
    codes = np.zeros(count, np.int8)
    codes[ends - 2] = VAL
    codes[ends - 1] = TEST
    return codes


def _temporal(known: np.ndarray | None, holdout: float) -> np.ndarray:
    if known is None:
        raise ValueError(
            "prepare.protocol='temporal' cuts in time, and these interactions have no times: "
            "choose prepare.protocol=leave-one-out"
        )
    # Rounded first, so that 1 - 2 * 0.1 of ten rows is eight of them.
    places = [
        min(int(round((1 - part * holdout) * len(known), 6)), len(known) - 1) for part in (2, 1)
    ]
    cuts = np.partition(known, places)[places]
    codes = np.searchsorted(cuts, known, side="right").astype(np.int8)
    empty = np.flatnonzero(np.bincount(codes, minlength=len(SPLITS)) == 0)
    if len(empty):
        raise ValueError(
            f"prepare.holdout={holdout} leaves no interactions in {SPLITS[empty[0]]}, as too many "
            "have one time: choose another holdout, or prepare.protocol=leave-one-out"
        )
    return codes
