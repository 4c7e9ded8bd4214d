import numpy as np
import pytest
from accelerate.data_loader import SeedableRandomSampler

from recipes.llm.length_groups import GROUPED, LengthGroups

BATCH = 4


def order_of(lengths, epoch=0, seed=3):
    order = SeedableRandomSampler(lengths, data_seed=seed)
    sampler = LengthGroups(order, lambda _: lengths, BATCH)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return [number - epoch * len(lengths) for number in sampler]


def batches_of(lengths, order):
    whole = len(order) // BATCH * BATCH
    return lengths[order[:whole]].reshape(-1, BATCH)


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(90, 200, size=3 * GROUPED * BATCH + 7)


def test_every_sample_comes_once_an_epoch(lengths):
    assert sorted(order_of(lengths)) == list(range(len(lengths)))


def test_a_batch_holds_prompts_of_like_length(lengths):
    batches = batches_of(lengths, order_of(lengths))
    padded = (batches.max(axis=1) * BATCH).sum() / batches.sum()
    drawn = batches_of(lengths, list(SeedableRandomSampler(lengths, data_seed=3)))
    assert padded < 1.01 < 1.1 < (drawn.max(axis=1) * BATCH).sum() / drawn.sum()


def test_long_and_short_batches_alternate_at_random(lengths):
    means = batches_of(lengths, order_of(lengths)).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_equally_long_prompts_keep_the_random_order():
    lengths = np.full(2 * GROUPED * BATCH + 3, 100)
    assert order_of(lengths) == list(SeedableRandomSampler(lengths, data_seed=3))


def test_lengths_that_differ_by_a_constant_give_the_same_order(lengths):
    assert order_of(lengths) == order_of(lengths + 1)


def test_an_order_follows_from_seed_and_epoch(lengths):
    assert order_of(lengths, epoch=2) == order_of(lengths, epoch=2)
    assert order_of(lengths, epoch=2) != order_of(lengths, epoch=1)
    assert order_of(lengths, seed=4) != order_of(lengths, seed=3)


def test_the_lengths_and_numbers_are_those_of_the_epoch(lengths):
    by_epoch = [lengths, lengths[::-1].copy()]
    sampler = LengthGroups(
        SeedableRandomSampler(lengths, data_seed=3), lambda epoch: by_epoch[epoch], BATCH
    )
    sampler.set_epoch(1)
    numbers = np.array(list(sampler))
    assert numbers.min() == len(lengths)
    assert (numbers - len(lengths)).tolist() == order_of(by_epoch[1], epoch=1)
