import numpy as np
import pytest

from recipes.evaluation.statistics import (
    Resampling,
    mean_over_seeds,
    paired_difference,
    ratio_interval,
    resampled_users,
    wilson_interval,
)

FEW = Resampling(samples=300, confidence=0.9, seed=3)


@pytest.fixture
def clustered():
    """(numerator, denominator, other numerator, users) of 12 users with 1 to 6 rows each."""
    generator = np.random.default_rng(7)
    users = np.repeat(np.arange(100, 112), generator.integers(1, 7, size=12))
    generator.shuffle(users)
    denominator = (generator.random(users.size) < 0.8).astype(float)
    numerator = denominator * (generator.random(users.size) < 0.6)
    other = denominator * (generator.random(users.size) < 0.4)
    return numerator, denominator, other, users


def naive_resamples(statistic, users, resampling):
    """Resample users one by one and collect all of their rows, in plain loops."""
    distinct = sorted(set(users.tolist()))
    values = []
    for chunk in resampled_users(len(distinct), resampling):
        for draw in chunk:
            rows = [row for user in draw for row in np.flatnonzero(users == distinct[user])]
            values.append(statistic(rows))
    return np.asarray(values)


def test_interval_equals_a_naive_loop_bootstrap_under_the_same_draws(clustered):
    numerator, denominator, _, users = clustered
    naive = naive_resamples(
        lambda rows: numerator[rows].sum() / denominator[rows].sum(), users, FEW
    )
    estimate = ratio_interval(numerator, denominator, users, FEW)
    assert estimate.value == pytest.approx(numerator.sum() / denominator.sum())
    np.testing.assert_allclose([estimate.low, estimate.high], np.quantile(naive, [0.05, 0.95]))
    assert estimate.interval == "bootstrap over users"
    assert (estimate.num_rows, estimate.num_users) == (users.size, 12)


def test_paired_difference_equals_a_naive_loop_bootstrap_under_the_same_draws(clustered):
    numerator, denominator, other, users = clustered
    naive = naive_resamples(
        lambda rows: (numerator[rows].sum() - other[rows].sum()) / denominator[rows].sum(),
        users,
        FEW,
    )
    found = paired_difference((numerator, denominator), (other, denominator), users, FEW)
    assert found.value == pytest.approx((numerator.sum() - other.sum()) / denominator.sum())
    np.testing.assert_allclose([found.low, found.high], np.quantile(naive, [0.05, 0.95]))
    assert found.share_above_zero == pytest.approx((naive > 0).mean())


def test_a_paired_interval_is_narrower_than_two_separate_ones_for_like_methods():
    generator = np.random.default_rng(0)
    users = np.arange(400)
    first = (generator.random(400) < 0.5).astype(float)
    second = np.where(np.arange(400) < 20, 0.0, first)
    ones = np.ones(400)
    found = paired_difference((first, ones), (second, ones), users, FEW)
    alone = ratio_interval(first, ones, users, FEW)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    assert found.excludes_zero


def test_rows_of_one_user_widen_the_interval():
    per_user = (np.random.default_rng(1).random(50) < 0.5).astype(float)
    ones = np.ones(500)
    copied = np.repeat(per_user, 10)
    clustered = ratio_interval(copied, ones, np.repeat(np.arange(50), 10), FEW)
    pretended = ratio_interval(copied, ones, np.arange(500), FEW)
    assert clustered.high - clustered.low > 2 * (pretended.high - pretended.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(5)
    resampling = Resampling(samples=200, confidence=0.9, seed=0)
    covered = 0
    for _ in range(300):
        rates = generator.beta(4, 6, size=60)  # a user's own hit rate; the mean is 0.4
        hit = generator.random((60, 5)) < rates[:, None]
        users = np.repeat(np.arange(60), 5)
        found = ratio_interval(hit.ravel(), np.ones(300), users, resampling)
        covered += found.low <= 0.4 <= found.high
    assert 0.83 < covered / 300 < 0.95


def test_equal_seeds_give_equal_intervals_and_others_do_not(clustered):
    numerator, denominator, _, users = clustered
    other_seed = Resampling(samples=300, confidence=0.9, seed=4)
    first = ratio_interval(numerator, denominator, users, FEW)
    assert first == ratio_interval(numerator, denominator, users, FEW)
    assert first != ratio_interval(numerator, denominator, users, other_seed)


@pytest.mark.parametrize("samples", [100, 256, 257, 600])
def test_exactly_the_wanted_number_of_resamples_is_drawn(samples):
    chunks = list(resampled_users(7, Resampling(samples=samples)))
    draws = np.concatenate(chunks)
    assert draws.shape == (samples, 7)
    assert set(np.unique(draws)) == set(range(7))


def test_one_user_has_no_interval():
    with pytest.raises(ValueError, match=r"at least 2 users, got 1.*max_users"):
        ratio_interval([1, 0], [1, 1], [9, 9], FEW)
    with pytest.raises(ValueError, match="at least 2 users"):
        paired_difference(([1], [1]), ([0], [1]), [9], FEW)
    with pytest.raises(ValueError, match="got 0"):
        ratio_interval([], [], [], FEW)


@pytest.mark.parametrize(("hit", "bounds"), [(1.0, (0.9638, 1.0)), (0.0, (0.0, 0.0362))])
def test_all_or_no_hits_fall_back_to_wilson_and_say_so(hit, bounds):
    users = np.repeat(np.arange(102), 3)  # Wilson's n counts users, not rows
    found = ratio_interval(np.full(306, hit), np.ones(306), users, Resampling())
    assert found.value == hit
    assert found.degenerate
    assert found.interval == "Wilson score over users"
    assert (found.low, found.high) == pytest.approx(bounds, abs=1e-3)


def test_users_without_a_counted_row_are_no_wilson_trials():
    found = ratio_interval([1, 1, 0], [1, 1, 0], [0, 1, 2], Resampling())
    assert (found.low, found.high) == pytest.approx(wilson_interval(2, 2, 0.95))


def test_wilson_interval_matches_the_textbook_value():
    # 10 of 50 at 95 %: (0.1124, 0.3304)
    assert wilson_interval(10, 50, 0.95) == pytest.approx((0.1124, 0.3304), abs=1e-4)


def test_a_ratio_without_a_counted_row_is_undefined():
    assert ratio_interval([0, 0], [0, 0], [0, 1], FEW) is None
    assert paired_difference(([0, 0], [0, 0]), ([1, 1], [1, 1]), [0, 1], FEW) is None


def test_a_difference_that_never_varies_supports_no_claim():
    ones, zeros = np.ones(5), np.zeros(5)
    same = paired_difference((ones, ones), (ones, ones), np.arange(5), FEW)
    assert (same.value, same.degenerate, same.excludes_zero) == (0.0, True, False)
    constant = paired_difference((ones, ones), (zeros, ones), np.arange(5), FEW)
    assert (constant.value, constant.degenerate, constant.excludes_zero) == (1.0, True, False)


def test_seeds_are_averaged_row_by_row():
    assert mean_over_seeds([[1, 0, 1], [0, 0, 1]]).tolist() == [0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="seeds, n"):
        mean_over_seeds([1.0, 0.0])


def test_outcomes_must_align_with_users():
    with pytest.raises(ValueError, match="every outcome must be"):
        ratio_interval([1, 0], [1, 1], [0, 1, 2], FEW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"samples": 99}, "bootstrap_samples"), ({"confidence": 1.0}, "confidence")],
)
def test_senseless_resampling_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Resampling(**arguments)
