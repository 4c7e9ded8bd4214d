"""Each user's interactions in order of time, and the rule for those of equal time.

Times are often coarse: LastFM's are days, MovieLens's are seconds in which a page of films was
rated. Then the rule decides what a user's last item is, so it is named and recorded:

- `stable`: equal times keep the order of the file;
- `item-id`: they are in ascending order of item_id, the dataset's number of an item, which need not
  be in the order of the source's ids;
- `random`: their order is drawn from a seed. A user's draw depends on the seed, the user's id and
  the user's own interactions alone;
- `drop`: they keep the order of the file, and no window whose target has a tie is evaluated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from recipes.datasets.dataset import Interactions
from recipes.datasets.ordering import order_by, places, run_starts

TieRule = Literal["stable", "item-id", "random", "drop"]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: the increment of SplitMix64."""


def in_order(found: Interactions, ties: TieRule, seed: int) -> pd.DataFrame:
    """Bring each user's interactions together and in order.

    Args:
        found: The interactions. Where they have no `position`, they are ordered by time; where no
            time is known, by their order in the file.
        ties: The rule for a user's interactions of equal time.
        seed: Random seed of the rule `random`.

    Returns:
        Columns user_id, item_id, timestamp and position (int64, from 0 within a user). Users come
        in order of their earliest `ranking`, or timestamp where there is no ranking. Equal ones
        keep the order of the users' first rows; users without any come last, in that order too.

    Raises:
        ValueError: Some interactions have a time and others none.
    """
    table = found.table
    users = table["user_id"].to_numpy()
    ranks = _user_ranks(users, _ranking(found))
    if "position" in table:
        order = order_by(ranks, table["position"].to_numpy())
    else:
        order = _by_time(ranks, times(table), table, ties, seed)
    del ranks
    names = ("user_id", "item_id", "timestamp")
    ordered = {name: table[name].take(order).array for name in names}
    users = users[order]
    ordered["position"] = places(run_starts(users), len(users))
    return pd.DataFrame(ordered, copy=False)


def times(table: pd.DataFrame) -> np.ndarray | None:
    """The column `timestamp`: int64 [n], or None if it holds nothing but nulls.

    Raises:
        ValueError: Some interactions have a time and others none.
    """
    missing = table["timestamp"].isna().to_numpy()
    if not missing.any():
        return table["timestamp"].to_numpy(np.int64)
    if missing.all():
        return None
    raise ValueError(
        f"{missing.sum()} of {len(table)} interactions have no time: leave them out, or give "
        "none of them a time, to keep the order of the file"
    )


@dataclass(frozen=True)
class TieCounts:
    """How often times are equal."""

    users: int
    """Number of users."""

    users_with_tied_last: int
    """Users whose last interaction has the time of the one before."""

    share_of_neighbours: float
    """Share of the pairs of neighbouring interactions of a user that have one time."""


def tied_rows(interactions: pd.DataFrame) -> np.ndarray:
    """Whether each row has the time of another one of its user: bool [n]. Rows are in order."""
    after = _tied_with_previous(interactions)
    return after | np.append(after[1:], False)


def tie_counts(interactions: pd.DataFrame) -> TieCounts:
    """Count ties among interactions that are in order of time."""
    tied = _tied_with_previous(interactions)
    starts = run_starts(interactions["user_id"].to_numpy())
    last = np.append(starts[1:], len(tied)) - 1
    pairs = max(len(tied) - len(starts), 1)
    return TieCounts(len(starts), int(tied[last].sum()), float(tied.sum() / pairs))


def _tied_with_previous(interactions: pd.DataFrame) -> np.ndarray:
    known = times(interactions)
    tied = np.zeros(len(interactions), np.bool_)
    if known is not None:
        users = interactions["user_id"].to_numpy()
        tied[1:] = (users[1:] == users[:-1]) & (known[1:] == known[:-1])
    return tied


def _ranking(found: Interactions) -> np.ndarray:
    if found.ranking is not None:
        return found.ranking.astype(np.float64, copy=False)
    return found.table["timestamp"].to_numpy(np.float64, na_value=np.inf)


def _user_ranks(users: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    """Rank of each row's user by the user's earliest `ranking`: int64 [n]."""
    owners, known = pd.factorize(users)
    first = np.full(len(known), np.inf)
    np.minimum.at(first, owners, ranking)
    rank = np.empty(len(known), np.int64)
    rank[first.argsort(kind="stable")] = np.arange(len(known))
    return rank[owners]


def _by_time(
    ranks: np.ndarray, known: np.ndarray | None, table: pd.DataFrame, ties: TieRule, seed: int
) -> np.ndarray:
    """Rows user by user, each user's in order of time: int64 [n]."""
    if known is None:
        return order_by(ranks)
    order = order_by(ranks, known)
    if ties in ("stable", "drop"):
        return order
    ranks = ranks[order]
    starts = run_starts(ranks, known[order])
    counts = np.diff(starts, append=len(order))
    # The rows of a moment stand together, so those that share theirs are sorted among themselves.
    tied = np.flatnonzero(np.repeat(counts > 1, counts))
    moments = np.repeat(np.arange(len(starts)), counts)[tied]
    own = order[tied]
    if ties == "item-id":
        key = table["item_id"].to_numpy()[own]
    else:
        users = table["user_id"].to_numpy()[own]
        key = _random_keys(users, places(run_starts(ranks), len(order))[tied], seed)
    order[tied] = own[order_by(moments, key)]
    return order


def _random_keys(users: np.ndarray, positions: np.ndarray, seed: int) -> np.ndarray:
    """A number from 0 to 2^32 - 1 for each (seed, user, position): int64 [n].

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): SplitMix64's
    function, once for each of the three.
    """
    state = np.full(1, seed, np.uint64)
    for part in (users, positions):
        state = _mixed(state) + part.astype(np.uint64)
    return (_mixed(state) >> np.uint64(32)).astype(np.int64)


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's next number after each state: uint64 [n]."""
    state = state + GOLDEN
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
