"""Gradients of groups of users: groups, ranks and cosines by hand, and one tiny run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from recipes.artifacts import read_json
from recipes.gradients import groups
from recipes.gradients.agreement import of_groups, similarities, summary
from recipes.gradients.groups import groups_of, two_halves
from recipes.gradients.measure import gradients
from recipes.gradients.report import gradient_page, without_users
from recipes.gradients.run import _refuse_no_direction
from recipes.methods import METHODS, tuned
from recipes.methods.method import Arm

from .tiny_runs import Runs, refused


def test_groups_are_numbered_so_that_neighbours_are_alike():
    # Three tight groups on a line: the one in the middle is number 1 whatever K-means calls it.
    users = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    found = groups_of(users, 3)
    assert found[0] == found[1] and found[2] == found[3] == 1 and found[4] == found[5]
    assert sorted({int(found[0]), int(found[4])}) == [0, 2]
    assert set(groups_of(users, 1)) == {0}
    with pytest.raises(ValueError, match="groups=7: there are 6 different"):
        groups_of(users, 7)


def test_groups_that_k_means_leaves_empty_are_told_as_groups(monkeypatch):
    def none(users, count):
        raise ValueError("adapt.num_experts=2")

    monkeypatch.setattr(groups, "centroids", none)
    with pytest.raises(ValueError, match="groups=2: 3 different representations do not fall"):
        groups_of(torch.tensor([[0.0], [1.0], [2.0]]), 2)


def test_gradients_without_a_direction_are_told():
    arm = Arm("lora", METHODS["lora"], {}, {})
    _refuse_no_direction(arm, np.ones((2, 2)))
    with pytest.raises(ValueError, match="gradients of lora are zero or not finite"):
        _refuse_no_direction(arm, np.full((2, 2), np.nan))


def test_cosines_by_hand_are_means_over_types_that_have_a_direction():
    found = {
        "q": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "v": torch.tensor([[1.0, 1.0], [3.0, 3.0]]),
        "o": torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    }
    assert similarities(found) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
    assert np.isnan(similarities({"o": found["o"]})).all()


def test_halves_of_groups_are_compared_across_users_and_a_group_with_itself():
    # Two groups; first and second half of each. Cosines of a0 with b0, b1 and of a1 with b0, b1:
    # 1, 0; .8, .6 -> between (0 + .8) / 2.
    halves = {"q": torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.8, 0.6], [0.0, 3.0]])}
    table = of_groups(halves)
    assert table == pytest.approx(np.array([[1, 0.4], [0.4, 0.6]]))
    found = summary(table)
    figures = [found[what] for what in ("between", "lowest", "within")]
    assert figures == pytest.approx([0.4, 0.4, 0.8])
    # Gaps of the groups are .6 and .2; resamples have .2, .4 or .6.
    assert list(found["gap"].values()) == pytest.approx([0.4, 0.2, 0.6])


def test_no_user_is_in_both_halves_and_a_group_of_one_half_is_told():
    users, groups = np.repeat(np.arange(6), 4), np.tile([0, 1], 12)
    found = two_halves(users, groups, np.random.default_rng(0))
    assert [len(half) for half in found] == [6, 6, 6, 6]
    assert [set(groups[half]) for half in found] == [{0}, {0}, {1}, {1}]
    first, second = (set(users[np.r_[found[k], found[k + 2]]]) for k in (0, 1))
    assert not first & second and first | second == set(range(6))
    with pytest.raises(ValueError, match="groups=2: all windows of one group are of users in the"):
        two_halves(np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1]), np.random.default_rng(0))


class Square(torch.nn.Module):
    """Loss (a * x)^2 of a batch's mean x, with a as the one LoRA matrix of two layers."""

    def __init__(self):
        super().__init__()
        self.llm = torch.nn.Module()
        for layer in range(2):
            block = torch.nn.Module()
            block.q_proj = torch.nn.Module()
            block.q_proj.lora_A = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.constant_(block.q_proj.lora_A.weight, 1.0)
            self.llm.add_module(f"layer{layer}", block)

    def forward(self, x, hybrid):
        assert hybrid
        first, second = (block.q_proj.lora_A.weight for block in self.llm.children())
        return {"loss": ((first * x) ** 2 + 3 * second * x).mean()}


def test_a_groups_gradient_is_the_mean_over_its_samples_and_over_layers():
    values = torch.tensor([1.0, 2.0, 3.0])

    def collator(samples):
        return {"x": values[list(samples)]}

    # d/da (a x)^2 = 2 x^2 and d/da 3 a x = 3 x; the mean over layers is half of the sum.
    by_hand = [(2 * x * x + 3 * x) / 2 for x in (1.0, 2.0, 3.0)]
    for batch in (1, 2, 3):
        found = gradients(Square(), collator, [[0, 1, 2], [2]], batch)  # type: ignore[arg-type]
        assert list(found) == ["q_proj"]
        expected = torch.tensor([[sum(by_hand) / 3], [by_hand[2]]])
        torch.testing.assert_close(found["q_proj"], expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("gradients"))


def test_a_tiny_run_has_cosines_pairs_and_ranks(runs: Runs, capsys):
    fields = ("--methods", "[lora,ilora]", "--groups", 3, "--rows", 4, "--users", 5)
    assert runs("gradients", *fields, "--seeds", 2) == 0
    assert not list(runs.folder.glob("adapt/*-seed1"))  # which is not read
    told = capsys.readouterr().out
    found = read_json(runs.folder / "gradients.json")
    assert list(found["arms"]) == ["lora", "ilora"] and found["pairs_of"] == "lora"
    assert len(found["sizes"]) == 3 and all(found["sizes"])
    for own in found["arms"].values():
        for when in ("before", "after"):
            table = np.array(own[when]["cosines"])
            assert table == pytest.approx(table.T) and np.abs(table).max() < 1
            assert own[when]["lowest"] == table[np.triu_indices(3, 1)].min()
            assert own[when]["gap"]["low"] <= own[when]["gap"]["value"] <= own[when]["gap"]["high"]
    most, least = (found["pairs"][name] for name in ("Most alike", "Least alike"))
    assert most["cosine"] >= least["cosine"]
    assert all(one["history"] and one["target"] for one in most["users"] + least["users"])
    assert most["users"][0]["user"] != most["users"][1]["user"]
    tried = [(len(own["sizes"]), sum(own["ranks"])) for own in found["ranks"]]
    assert tried == [(2, 4), (3, 4), (4, 4)]
    text = (runs.folder / "gradients.md").read_text()
    assert text in told and "![Cosines between groups](gradients.png)" in text
    assert imread(runs.folder / "gradients.png").shape[0] > 600
    assert (runs.folder / "gradients.svg").exists()
    shared = without_users(found)
    assert all(list(pair) == ["cosine"] for pair in shared["pairs"].values())
    public = gradient_page(shared, "tiny.png")
    assert "**Least alike**: cosine" in public and " → " not in public and "(tiny.png)" in public
    html = (runs.folder / "gradients.html").read_text()
    assert html.count("data:image/png;base64,") == 1


def test_a_tuned_arms_chosen_trial_is_looked_at_and_nothing_else_is_trained(
    tmp_path: Path, monkeypatch
):
    def by_rank(run, plan, vectors):
        return lambda model: plan.settings.rank / 10

    monkeypatch.setattr(tuned, "hit_ratio_on_validation", by_rank)
    arms = "[{method: lora, tune: {rank: [2, 4]}}, {method: prefixrec}, {method: gru4rec}]"
    tried = Runs(tmp_path)
    assert tried("gradients", "--arms", arms, "--groups", 2, "--rows", 2, "--users", 3) == 0
    found = read_json(tried.folder / "gradients.json")
    assert list(found["arms"]) == ["lora-tuned,rank=4"] == [found["pairs_of"]]
    assert all(sum(own["ranks"]) == 4 for own in found["ranks"])
    made = {path.parent.name for path in tried.folder.glob("*/*/record.json")}
    trials = {f"lora-tuned,rank={rank}-seed0" for rank in (2, 4)}
    assert made == {"sasrec", "stand-in", "lora-tuned-seed0"} | trials


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("--groups", "many"), "argument --groups: invalid int value: 'many'"),
        (("--groups", 1), "groups=1 must be at least 2"),
        (("--methods", "[tallrec]"), "no arm reads the vectors of sasrec, by which users are"),
        (
            ("--arms", "[{method: lora}, {method: ilora, min_history: 4}]"),
            "the arms lora and ilora,min_history=4 train on different windows",
        ),
        (
            ("--arms", "[{method: lora, tune: {train_windows: [8, 9]}}]"),
            "the arms lora-tuned,train_windows=8 and lora-tuned,train_windows=9 train on different",
        ),
        (("--groups", 10_000), "groups=10000: there are "),
        (("--methods", "[sasrec]"), "no arm trains a LoRA on these data: give --methods"),
        (("--methods", "[prefixrec]"), "no arm trains a LoRA on these data: give --methods"),
        (
            ("--adapt", '{"frozen_prefix": true, "last_layers": 1, "redraw_candidates": false}'),
            "adapt.frozen_prefix=true of arm ilora: gradients are taken through",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_no_adapter_is_trained(
    runs: Runs, fields, message, tmp_path: Path, capsys
):
    assert runs("gradients", *fields, out=tmp_path / "none") == 2
    assert message in refused(capsys.readouterr().err)
    assert not (tmp_path / "none" / "adapt").exists()
