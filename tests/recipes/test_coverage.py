"""How often a 95 % interval over users and seeds covers the truth, in simulated studies.

A user's outcome under a seed is `0.5 + user + seed + rest`, with normal parts of known standard
deviations. `python tests/recipes/test_coverage.py` prints the shares.
"""

import numpy as np
import pytest

from recipes.evaluation.statistics import Resampling, paired_difference, ratio_interval

USERS, STUDIES = 200, 400
RESAMPLING = Resampling(samples=400)
WORLDS = {
    "users vary": (0.4, 0.0, 0.25),
    "seeds vary a little": (0.4, 0.01, 0.25),
    # The mean over five seeds varies as much as the mean over 200 users does.
    "both vary alike": (0.4, 0.4 * (5 / USERS) ** 0.5, 0.25),
    "seeds decide": (0.05, 0.1, 0.05),
}


def coverage(num_seeds: int, world: str) -> tuple[float, float]:
    """Shares of studies whose interval covers: of one method, of a difference of two."""
    generator = np.random.default_rng(0)
    ones, users = np.ones((num_seeds, USERS)), np.arange(USERS)
    by_user, by_seed, rest = WORLDS[world]
    covered = np.zeros(2)
    for _ in range(STUDIES):
        user = generator.normal(0.5, by_user, USERS)
        own, other = (
            user
            + generator.normal(0, by_seed, (num_seeds, 1))
            + generator.normal(0, rest, (num_seeds, USERS))
            for _ in range(2)
        )
        one = ratio_interval(own, ones, users, RESAMPLING)
        two = paired_difference((own, ones), (other, ones), users, RESAMPLING, same_seeds=True)
        assert one is not None and two is not None
        covered += one.low <= 0.5 <= one.high, two.low <= 0 <= two.high
    one, two = covered / STUDIES
    return float(one), float(two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "least"),
    [("users vary", 0.93), ("both vary alike", 0.92), ("seeds decide", 0.91)],
)
def test_five_seeds_cover_about_as_often_as_the_docstring_says(world, least):
    assert min(coverage(5, world)) >= least


if __name__ == "__main__":
    for seeds in (2, 5, 10):
        for name in WORLDS:
            print(f"{seeds} seeds, {name}: {coverage(seeds, name)}", flush=True)
