import numpy as np
import pytest

from recipes.evaluation.statistics import (
    Resampling,
    paired_difference,
    ratio_interval,
    resampled_seeds,
    resampled_users,
    widening,
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


@pytest.fixture
def seeded():
    """(numerators, denominators, users) under three seeds of 9 users with 1 to 4 rows each."""
    generator = np.random.default_rng(8)
    users = np.repeat(np.arange(9), generator.integers(1, 5, size=9))
    denominators = (generator.random((3, users.size)) < 0.8).astype(float)
    numerators = denominators * (generator.random((3, users.size)) < [[0.2], [0.5], [0.8]])
    return numerators, denominators, users


def naive_ratios(numerators, denominators, users, stream):
    """The pigeonhole bootstrap in plain loops: every drawn user under every drawn seed."""
    seeds = resampled_seeds(len(numerators), FEW, stream)
    draws = np.concatenate(list(resampled_users(9, FEW)))
    values = []
    for times, drawn in zip(seeds, draws, strict=True):
        top = bottom = 0.0
        for seed, count in enumerate(times):
            for user in drawn:
                rows = users == user
                top += count * numerators[seed, rows].sum()
                bottom += count * denominators[seed, rows].sum()
        under_all = sum(numerators[:, users == user].sum() for user in drawn)
        under_all /= sum(denominators[:, users == user].sum() for user in drawn)
        values.append(under_all + widening(3, FEW.confidence) * (top / bottom - under_all))
    return np.clip(values, 0, 1)


def test_users_and_seeds_are_resampled_as_in_a_naive_loop(seeded):
    numerators, denominators, users = seeded
    found = ratio_interval(*seeded, FEW)
    assert found.value == pytest.approx(numerators.sum() / denominators.sum())
    assert (found.interval, found.num_users) == ("bootstrap over users and seeds", 9)
    naive = naive_ratios(*seeded, stream=0)
    np.testing.assert_allclose([found.low, found.high], np.quantile(naive, [0.05, 0.95]))
    users_only = ratio_interval(numerators.mean(axis=0), denominators.mean(axis=0), users, FEW)
    assert found.high - found.low > users_only.high - users_only.low


@pytest.mark.parametrize("same", [True, False])
def test_arms_of_the_same_seeds_share_their_draws_and_others_do_not(seeded, same):
    numerators, denominators, users = seeded
    other = np.roll(numerators, 1, axis=1) * denominators
    sides = (numerators, denominators), (other, denominators)
    found = paired_difference(*sides, users, FEW, same_seeds=same)
    own = naive_ratios(numerators, denominators, users, stream=0)
    naive = own - naive_ratios(other, denominators, users, stream=0 if same else 1)
    np.testing.assert_allclose([found.low, found.high], np.quantile(naive, [0.05, 0.95]))
    assert found.interval == "bootstrap over users and seeds"


def test_the_widening_turns_the_normal_quantile_into_students():
    # Student's t with 4 degrees of freedom: 2.776 at 97.5 %; the normal one: 1.960.
    assert widening(5, 0.95) == pytest.approx(2.776445 / 1.959964 * (5 / 4) ** 0.5, rel=1e-6)
    assert 1 < widening(1000, 0.95) < 1.01


def test_where_seeds_alone_decide_the_interval_is_about_students():
    generator = np.random.default_rng(2)
    shares = generator.normal(0.5, 0.05, (10, 1)) * np.ones((10, 40))
    found = ratio_interval(shares, np.ones((10, 40)), np.arange(40), Resampling(samples=4000))
    half = 2.262157 * shares[:, 0].std(ddof=1) / 10**0.5  # t with 9 degrees of freedom
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_a_method_minus_itself_never_varies_under_the_same_seeds(seeded):
    numerators, denominators, users = seeded
    side = numerators, denominators
    assert paired_difference(side, side, users, FEW, same_seeds=True).degenerate
    assert not paired_difference(side, side, users, FEW, same_seeds=False).degenerate


def test_one_seed_beside_several_is_in_every_resample(seeded):
    numerators, denominators, users = seeded
    ones = np.ones(users.size)
    found = paired_difference((numerators, denominators), (ones, ones), users, FEW)
    alone = ratio_interval(numerators, denominators, users, FEW)
    assert (found.low, found.high) == pytest.approx((alone.low - 1, alone.high - 1))


@pytest.mark.parametrize("seeds", [1, 4])
def test_every_resample_draws_as_many_seeds_as_there_are(seeds):
    counts = resampled_seeds(seeds, FEW)
    assert counts.shape == (300, seeds) and (counts.sum(axis=1) == seeds).all()
    assert (counts == resampled_seeds(seeds, FEW)).all()


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
