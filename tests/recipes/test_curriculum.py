import numpy as np

from recipes.llm.curriculum import hybrid_steps


def test_step_t_of_T_is_hybrid_with_probability_t_over_T():
    share = np.mean([hybrid_steps(20, seed, curriculum=True) for seed in range(4000)], axis=0)
    np.testing.assert_allclose(share, np.arange(1, 21) / 20, atol=0.03)


def test_the_last_step_is_always_hybrid():
    assert all(hybrid_steps(7, seed, curriculum=True)[-1] for seed in range(200))


def test_the_seed_alone_decides():
    first = hybrid_steps(50, 3, curriculum=True)
    np.random.seed(0)
    assert np.array_equal(first, hybrid_steps(50, 3, curriculum=True))
    assert not np.array_equal(first, hybrid_steps(50, 4, curriculum=True))


def test_without_a_curriculum_every_step_is_hybrid():
    assert hybrid_steps(50, 3, curriculum=False).all()
