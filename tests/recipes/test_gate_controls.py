"""Controls of the gate: what is read in place of a user's own vectors; figures of modulations."""

import numpy as np
import pytest
import torch

from recipes.arms import comparison
from recipes.data.tables import Split
from recipes.evaluation.outcomes import Outcomes, metrics_for
from recipes.evaluation.protocol import Protocol
from recipes.evaluation.statistics import Resampling, paired_difference
from recipes.evaluation.summary import _comparison_entry
from recipes.experiment import EvaluateConfig, Experiment
from recipes.methods import METHODS
from recipes.methods.gate_hard import kept
from recipes.methods.gate_shuffled import donors
from recipes.recommenders.normaliser import Normaliser
from recipes.recommenders.vectors import Vectors
from recipes.scoring.modulation import modulation_summary
from recipes.scoring.rows import EvaluatedRows

USERS = {
    "train": np.array([4, 4, 4, 0, 0, 9, 9, 9, 9]),
    "val": np.array([7, 2, 2]),
    "test": np.array([3, 3, 8, 8, 8, 8]),
}


def vectors(width: int = 2) -> Vectors:
    generator = torch.Generator().manual_seed(0)
    users = {name: torch.randn(len(ids), width, generator=generator) for name, ids in USERS.items()}
    nothing = torch.zeros(3, width)
    return Vectors(users, nothing, Normaliser.fit(nothing, users["train"]))


def exchanged(name: str, seed: int = 0):
    return METHODS[name].exchanged(vectors(), USERS, seed)


@pytest.mark.parametrize("seed", range(5))
def test_every_user_has_one_other_user_of_its_splits_and_gives_to_one(seed):
    found = donors(USERS, seed)
    for own in ({0, 4, 9}, {2, 7}, {3, 8}):
        assert {found[user] for user in own} == own
        assert all(found[user] != user for user in own)
    assert found == donors(USERS, seed)


def test_a_user_of_several_splits_has_the_same_donor_in_all():
    users = np.arange(50)
    found = donors({"train": users, "test": users[:30], "val": users[:30]}, seed=1)
    assert {found[user] for user in range(30)} == set(range(30))
    assert {found[user] for user in range(30, 50)} == set(range(30, 50))
    assert found != donors({"train": users, "test": users[:30], "val": users[:30]}, seed=2)


def test_shuffled_rows_are_the_donors_rows_in_order():
    own, found = vectors().users["test"], exchanged("gate-shuffled")["test"]
    # User 3 has two windows and user 8 four: 0 and 1 get 8's first and third, 8's get 3's twice.
    torch.testing.assert_close(found, own[[2, 4, 0, 0, 1, 1]])


def test_a_user_alone_in_its_splits_gets_the_mean():
    users = {"train": np.array([1, 1, 2]), "val": np.array([3, 3]), "test": np.array([4, 5])}
    made = vectors()
    made = Vectors({n: made.users[n][: len(ids)] for n, ids in users.items()}, made.items, None)
    found = METHODS["gate-shuffled"].exchanged(made, users, 0)
    assert not found["val"].any() and found["train"].any() and found["test"].any()


def test_random_vectors_are_a_users_own_in_all_windows_and_have_the_train_moments():
    many = {"train": np.arange(4000), "val": np.array([0, 0, 1]), "test": np.array([9, 9])}
    spread = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    real = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)) @ spread + 3
    made = Vectors({"train": real, "val": real[:3], "test": real[:2]}, real, None)
    found = METHODS["gate-random"].exchanged(made, many, 0)
    torch.testing.assert_close(found["val"], found["train"][[0, 0, 1]])
    torch.testing.assert_close(found["train"].mean(dim=0), real.mean(dim=0), atol=0.1, rtol=0)
    torch.testing.assert_close(found["train"].T.cov(), real.T.cov(), atol=0.3, rtol=0)
    other = METHODS["gate-random"].exchanged(made, many, 1)
    assert not torch.allclose(found["train"], other["train"])


def test_the_constant_is_the_train_users_mean_for_everyone():
    found, mean = exchanged("gate-constant"), vectors().users["train"].mean(dim=0)
    for name, users in USERS.items():
        torch.testing.assert_close(found[name], mean.expand(len(users), 2))


def test_a_user_keeps_the_expert_of_its_first_long_window():
    def windows(*rows):
        users, lengths, experts = (np.array(one) for one in zip(*rows, strict=True))
        nothing = np.empty((len(rows), 0), np.int64)
        return Split(users, nothing, lengths, users, nothing, users > 0), torch.tensor(experts)

    # (user, length of the history, own expert); user 5 is in two splits, user 9 has no long window
    rows = {
        "train": [(5, 0, 3), (5, 2, 1), (5, 3, 2), (9, 0, 0), (9, 1, 3)],
        "val": [(5, 4, 0), (7, 3, 3)],
        "test": [(7, 4, 1), (5, 1, 0)],
    }
    made = {name: windows(*own) for name, own in rows.items()}
    splits, experts = ({name: one[k] for name, one in made.items()} for k in (0, 1))
    found = kept(experts, splits, 2)
    assert {name: one.tolist() for name, one in found.items()} == {
        "train": [3, 1, 1, 0, 3],
        "val": [1, 3],
        "test": [3, 1],
    }
    assert all(one.dtype == torch.int64 for one in found.values())


@pytest.mark.parametrize("name", ["gate-shuffled", "gate-random", "gate-constant"])
def test_controls_have_ilora_s_settings_and_refuse_a_gate_that_reads_no_vector(name):
    given = {"gate_form": "scale", "gate": "trunk"}
    own, like = (
        comparison(Experiment(arms=[{"method": one, **given}])).arms[-1] for one in (name, "ilora")
    )
    assert own.settings == like.settings
    config = own.method.peft_config(own.settings, 8)
    assert config.routing_source != like.method.peft_config(like.settings, 8).routing_source
    with pytest.raises(ValueError, match=f"method {name}: gate_input='prompt' reads no vector"):
        comparison(Experiment(arms=[{"method": name, "gate_input": "prompt"}]))


class Gated:
    """Gives the values 1 and -1 to user 0's rows, 3 and 0 to user 1's one row."""

    def modulations(self, split, rows):
        values = torch.tensor([[1.0, -1.0], [1.0, -1.0], [3.0, 0.0]])
        return {"scale": values[rows], "shift": torch.zeros(len(rows), 2)}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_modulations_are_summed_up_by_hand(batch_size):
    rows = np.arange(3)
    chosen = EvaluatedRows("test", rows, np.array([0, 0, 1]), rows, rows[:, None], rows)
    scale, shift = modulation_summary(Gated(), chosen, batch_size)
    assert scale["of"] == "scale" and scale["mean_abs"] == pytest.approx(7 / 6)
    assert scale["mean_abs_of_mean"] == pytest.approx((5 / 3 + 2 / 3) / 2)
    # users' means: (1, 3) and (-1, 0), of variances 1 and 1/4
    assert scale["std_users"] == pytest.approx((5 / 8) ** 0.5)
    # rows: (1, 1, 3) and (-1, -1, 0), of variances 8/9 and 2/9
    assert scale["std_rows"] == pytest.approx((5 / 9) ** 0.5)
    assert shift == {"of": "shift", "mean_abs": 0, "mean_abs_of_mean": 0} | {
        "std_users": 0,
        "std_rows": 0,
    }


def test_rows_whose_modulation_is_not_finite_are_left_out():
    class Broken(Gated):
        def modulations(self, split, rows):
            found = super().modulations(split, [row % 3 for row in rows])
            found["shift"][np.asarray(rows) > 2] = np.nan
            return found

    rows = np.arange(5)
    users = np.array([0, 0, 1, 1, 2])  # the last user has no row that counts
    chosen = EvaluatedRows("test", rows, users, rows, rows[:, None], rows)
    whole = EvaluatedRows("test", rows[:3], users[:3], rows[:3], rows[:3, None], rows[:3])
    assert modulation_summary(Broken(), chosen, 2) == modulation_summary(Gated(), whole, 2)
    assert modulation_summary(Broken(), chosen.take(slice(3, 5)), 2) == []


def test_given_these_trainings_only_users_vary():
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(20), 3)
    first, second = (generator.integers(0, 2, (2, 60)).astype(float) for _ in range(2))
    ones, resampling = np.ones((2, 60)), Resampling(samples=200)
    sides = [
        Outcomes(numerators=top, denominators=ones, user_ids=users, seeds=[0, 1])
        for top in (first, second)
    ]
    metric = metrics_for(Protocol(EvaluateConfig(), 20))[-1]
    entry = _comparison_entry(metric, ("a", sides[0]), ("b", sides[1]), resampling)
    tops = [side.sum(axis=0) for side in (first, second)]
    wanted = paired_difference((tops[0], ones[0] * 2), (tops[1], ones[0] * 2), users, resampling)
    assert entry["value"] == pytest.approx(wanted.value)
    assert entry["given_trainings"] == [wanted.low, wanted.high]
    assert wanted.high - wanted.low < entry["high"] - entry["low"]
