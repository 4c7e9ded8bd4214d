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


def shares(**changes) -> np.ndarray:
    """How often each of ten steps, in two epochs of five, is hybrid."""
    found = [hybrid_steps(10, seed, curriculum=True, epoch=5, **changes) for seed in range(4000)]
    return np.mean(found, axis=0)


def test_the_references_counter_restarts_in_every_epoch():
    wanted = np.tile(np.arange(1, 6) / 10, 2)
    np.testing.assert_allclose(shares(mistakes=["curriculum-restarts"]), wanted, atol=0.03)


def test_the_first_upload_goes_from_hybrid_to_text_only():
    wanted = 1 - np.arange(1, 11) / 10
    np.testing.assert_allclose(shares(mistakes=["curriculum-reversed"]), wanted, atol=0.03)
    both = shares(mistakes=["curriculum-reversed", "curriculum-restarts"])
    np.testing.assert_allclose(both, np.tile(1 - np.arange(1, 6) / 10, 2), atol=0.03)
