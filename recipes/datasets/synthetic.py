"""A synthetic world: a user's next item depends on their kind, which the last item never reveals.

Items. The title of each of the 16 chain items is one of 4 adjectives and one of 4 nouns, so an item
is a point (a, b) of a 4 x 4 torus. In addition there are 4 profile items for each kind of user.

Users. Kinds are balanced and shuffled. A user meets `PROFILE_LENGTH` = 3 different profile items of
their kind and then `CHAIN_LENGTH` = 8 chain items. The first chain item is uniformly random; each
next one follows the kind's rule with probability `FOLLOW` = 0.95, else it is uniformly random:

    kind 0: (a, b) -> (a, b + 1)      kind 2: (a, b) -> (a, b - 1)
    kind 1: (a, b) -> (a + 1, b)      kind 3: (a, b) -> (a - 1, b)        all modulo 4

The rules contradict each other at every item, and under every kind each chain item is equally
likely at each step. So the last item alone says nothing about the kind; the older history, which
the recommender reads, says everything. If the prompt shows only the last item
(`adapt.prompt_history: 1`), the user representation is therefore the only source of the kind.

The attainable hit ratio is known in closed form, see `ceilings`. The formula holds only if
negatives are drawn from all items but the target. Here items recur within a user: negatives that
excluded the visible history would make the candidate list its complement and so reveal the kind.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd

from recipes.datasets.dataset import BY_TIME, Dataset, Interactions
from recipes.experiment import PrepareConfig, SyntheticConfig
from recipes.ranges import check_ranges

FIRST_WORDS = ("amber", "crimson", "silver", "violet")
SECOND_WORDS = ("falcon", "harbor", "lantern", "meadow")
PROFILE_TITLES = (
    ("polar drift", "frozen tide", "winter signal", "glacier hymn"),
    ("desert engine", "copper canyon", "burning mesa", "dusty highway"),
    ("paper orchid", "velvet garden", "spring letter", "porcelain bloom"),
    ("midnight circuit", "neon arcade", "chrome pulse", "electric alley"),
)
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""The step that each kind's rule adds to (a, b)."""

SIDE = len(FIRST_WORDS)
NUM_CHAIN = SIDE * len(SECOND_WORDS)
POOL = len(PROFILE_TITLES[0])
PROFILE_LENGTH = 3
CHAIN_LENGTH = 8
FOLLOW = 0.95
MINUTE_MS = 60_000
FIRST_TIMESTAMP_MS = 1_600_000_000_000


def titles(num_kinds: int) -> list[str]:
    """Titles by item id: chain item (a, b) has id `4 a + b`; the profile items follow, by kind."""
    chain = [f"{first} {second}" for first in FIRST_WORDS for second in SECOND_WORDS]
    return chain + [title for pool in PROFILE_TITLES[:num_kinds] for title in pool]


def successors(kinds: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The chain item that follows each item by the rule of each kind (int64; shapes broadcast)."""
    step = np.asarray(STEPS)[kinds]
    first = (items // SIDE + step[..., 0]) % SIDE
    second = (items % SIDE + step[..., 1]) % SIDE
    return first * SIDE + second


def user_kinds(config: SyntheticConfig) -> np.ndarray:
    """The kind of each user, which a recommender has to infer: int64 [num_users], by user id."""
    check_ranges(config, "prepare.synthetic.")
    order = np.random.default_rng([config.seed, 0]).permutation(config.num_users)
    return order % config.num_kinds


class Synthetic(Dataset):
    """The generated dataset that this module describes."""

    name = "synthetic"
    summary = "a made-up world whose users follow contradicting rules; needs no files"
    protocols = (*BY_TIME, "llara")

    def read(self, config: PrepareConfig, files: Mapping[str, Path]) -> Interactions:
        """Generate the interactions.

        Users start a day apart, in order of their ids. Kinds do not depend on the ids, so the split
        by first timestamp is a random split with respect to kinds.
        """
        kinds = user_kinds(config.synthetic)
        random = np.random.default_rng([config.synthetic.seed, 1])
        sequences = np.concatenate([_profiles(kinds, random), _chains(kinds, random)], axis=1)
        users, positions = np.indices(sequences.shape)
        start = FIRST_TIMESTAMP_MS + users * (24 * 60 * MINUTE_MS)
        table = pd.DataFrame(
            {
                "user_id": users.ravel(),
                "item_id": sequences.ravel(),
                "position": positions.ravel(),
                "timestamp": (start + positions * MINUTE_MS).ravel(),
            }
        )
        return Interactions(table, titles(config.synthetic.num_kinds))

    def ceilings(self, config: PrepareConfig) -> dict[str, float] | None:
        """Attainable HitRatio@1; see the function `ceilings`, and what it does not cover."""
        if config.protocol == "temporal" or config.negatives not in (None, "catalogue"):
            return None
        return asdict(ceilings(config.synthetic.num_kinds, config.num_candidates))


def _profiles(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Different profile items of each user's kind, in random order: [users, PROFILE_LENGTH]."""
    order = random.random((len(kinds), POOL)).argsort(axis=1)[:, :PROFILE_LENGTH]
    return NUM_CHAIN + POOL * kinds[:, None] + order


def _chains(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Chain items of each user, by the rule of their kind: [users, CHAIN_LENGTH]."""
    chains = random.integers(NUM_CHAIN, size=(len(kinds), CHAIN_LENGTH))
    follows = random.random(chains.shape) < FOLLOW
    for step in range(1, CHAIN_LENGTH):
        ruled = successors(kinds, chains[:, step - 1])
        chains[:, step] = np.where(follows[:, step], ruled, chains[:, step])
    return chains


@dataclass(frozen=True)
class Ceilings:
    """Expected HitRatio@1 of ideal predictors, for a chain item as target and as last item."""

    oracle: float
    """For a predictor that knows the kind, the last item and the candidates."""

    last_item: float
    """For a predictor that knows the last item and the candidates, but not the kind."""


def ceilings(num_kinds: int = len(STEPS), num_candidates: int = 20) -> Ceilings:
    """Attainable HitRatio@1 when `num_candidates - 1` negatives are uniform over all other items.

    Let f = FOLLOW, C = 16 chain items, N = C + 4 `num_kinds` items and m = num_candidates - 1.
    Every set of m negatives is equally likely whatever the target, so the candidates change no
    ratio of probabilities, and the best answer is the candidate with the highest prior.

    To the predictor k kinds are equally likely: k = 1 for `oracle`, k = `num_kinds` for
    `last_item`. The k successors share the prior S = f + (1 - f) k/C equally, the other chain items
    share 1 - S equally, and profile items have prior 0. The predictor guesses among the successors
    that are candidates or, if there are none, among the other chain candidates. This is right with
    probability

        S E[1 / (1 + H(N - 1, k - 1, m))]
        + (1 - S) P(H(N - 1, k, m) = 0) E[1 / (1 + H(N - 1 - k, C - 1 - k, m))]

    where H(n, j, m) is hypergeometric: the number of marked items among m draws from n items, of
    which j are marked.

    The formula does not cover windows whose target is a profile item or the first chain item.
    """
    num_items, draws = NUM_CHAIN + POOL * num_kinds, num_candidates - 1
    if not 1 <= draws < num_items:
        raise ValueError(f"num_candidates={num_candidates}: choose 2 to {num_items}, the catalogue")

    def expected(kinds: int) -> float:
        ruled = FOLLOW + (1 - FOLLOW) * kinds / NUM_CHAIN
        absent = _hypergeometric(num_items - 1, kinds, draws)[0]
        guess = _inverse(num_items - 1 - kinds, NUM_CHAIN - 1 - kinds, draws) if absent else 0.0
        return ruled * _inverse(num_items - 1, kinds - 1, draws) + (1 - ruled) * absent * guess

    return Ceilings(oracle=expected(1), last_item=expected(num_kinds))


def _hypergeometric(total: int, marked: int, draws: int) -> list[float]:
    """Probabilities of 0, 1, 2, .. marked items among `draws` from `total` items."""
    most = min(marked, draws)
    ways = [comb(marked, hits) * comb(total - marked, draws - hits) for hits in range(most + 1)]
    return [way / comb(total, draws) for way in ways]


def _inverse(total: int, marked: int, draws: int) -> float:
    """E[1 / (1 + H)]: the chance of guessing the target among H equally plausible other items."""
    chances = _hypergeometric(total, marked, draws)
    return sum(chance / (1 + hits) for hits, chance in enumerate(chances))
