"""Experts from clusters of users: their number by silhouette, their ranks by sizes."""

import re
import shutil
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from recipes.artifacts import read_json, write_json
from recipes.methods import METHODS
from recipes.methods.expert_ranks import best, clusterings, ranks_from_sizes, silhouette
from recipes.methods.ilora import ILoRA
from recipes.methods.method import Arm
from recipes.report.clusters import clusters_section

from .tiny_runs import Runs, copied, redone, refused


@pytest.mark.parametrize(
    ("sizes", "total", "ranks"),
    [
        ([10, 10, 10, 10], 16, [4, 4, 4, 4]),
        ([70, 10, 10, 10], 16, [11, 2, 2, 1]),
        ([97, 1, 1, 1], 16, [13, 1, 1, 1]),
        ([2, 1], 4, [3, 1]),
        ([1, 1, 1], 3, [1, 1, 1]),
        ([5], 8, [8]),
    ],
)
def test_ranks_follow_sizes_and_keep_the_sum(sizes, total, ranks):
    assert ranks_from_sizes(sizes, total) == ranks


def test_more_groups_than_ranks_are_refused():
    with pytest.raises(ValueError, match="3 groups cannot share a total rank of 2"):
        ranks_from_sizes([1, 1, 1], 2)


def test_a_silhouette_by_hand():
    def of(points: list[float], labels: list[int]) -> float:
        line = np.array(points)
        return silhouette(np.abs(line[:, None] - line), np.array(labels))

    # Of 0 and 11: a = 1, b = 10.5; of 1 and 10: a = 1, b = 9.5.
    assert of([0, 1, 10, 11], [0, 0, 1, 1]) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    assert of([0, 1, 10], [0, 0, 1]) == pytest.approx((9 / 10 + 8 / 9 + 0) / 3)
    assert of([3, 3, 3, 3], [0, 1, 0, 1]) == 0  # nothing tells them apart
    # 1 is nearer to the other cluster than to its own: a = 9, b = 1; of both 10: a = 4.5, b = 10.
    found = of([0, 1, 10, 10], [0, 1, 1, 1])
    assert found == pytest.approx((0 - 8 / 9 + 2 * 5.5 / 10) / 4)


def drawn(sizes: list[int], width: int = 8, far: float = 20.0) -> torch.Tensor:
    """Normal clusters of these sizes, their centres far from each other, in a random order."""
    generator = torch.Generator().manual_seed(len(sizes))
    parts = [
        torch.randn(size, width, generator=generator) + far * torch.eye(width)[place]
        for place, size in enumerate(sizes)
    ]
    users = torch.cat(parts)
    return users[torch.randperm(len(users), generator=generator)]


@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ([100, 60, 40], [8, 5, 3]),
        ([90, 30], [12, 4]),
        ([50, 50, 50, 50, 50], [4, 3, 3, 3, 3]),
        ([120, 40, 20, 10, 10], [9, 3, 2, 1, 1]),
    ],
    ids=str,
)
def test_clusters_that_are_there_are_found_with_their_sizes(sizes, ranks):
    found = clusterings(drawn(sizes), total=16)
    assert [len(one.sizes) for one in found] == [2, 3, 4, 5, 6, 7, 8]
    assert best(found).sizes == sizes and best(found).ranks == ranks
    assert all(sum(one.ranks) == 16 and min(one.ranks) >= 1 for one in found)
    assert clusterings(drawn(sizes), total=16) == found


def test_there_are_no_more_experts_than_ranks_or_different_windows():
    users = drawn([30, 30, 30])
    assert [len(one.sizes) for one in clusterings(users, total=2)] == [2]
    assert [len(one.sizes) for one in clusterings(users[:3].repeat(5, 1), total=16)] == [2, 3]
    with pytest.raises(ValueError, match="a rank of 16 and .* 9 train windows, of which 1 differ"):
        clusterings(users[:1].repeat(9, 1), total=16)


def test_many_windows_are_evenly_spaced():
    users = torch.arange(6000.0)[:, None] // 2000 * 100  # three values
    found = clusterings(users, total=6)
    assert best(found).ranks == [2, 2, 2] and sum(best(found).sizes) == 2000


def test_only_train_windows_are_read_and_only_those_that_are_trained_on():
    settings = {"rank": 16, "recommender": "sasrec", "options": {"expert_ranks": "clusters"}}
    train = SimpleNamespace(history_lengths=np.array([3] * 200 + [1] * 50))
    known = {"train": torch.cat([drawn([100, 60, 40]), torch.full((50, 8), 1e4)])}
    run = SimpleNamespace(
        data=SimpleNamespace(split={"train": train}.__getitem__),
        vectors=lambda name: SimpleNamespace(users=known),
    )
    method = cast(Any, METHODS["ilora"])
    arm = SimpleNamespace(settings=settings)
    wanted = SimpleNamespace(min_history=3, train_windows=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ILoRA, "settings_of", lambda self, arm: wanted)
        found = method.clusterings(run, cast(Arm, arm))
    assert best(found).sizes == [100, 60, 40]


ARMS = "[{method: ilora, expert_ranks: clusters}, {method: lora}]"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("clusters"))
    assert runs("run", "--arms", ARMS) == 0
    return runs


def test_an_arm_has_the_experts_of_the_best_clusters(done):
    folder = done.folder / "adapt" / "ilora,expert_ranks=clusters-seed0"
    tried = read_json(folder / "clusters.json")
    assert tried["source"] == "sasrec"
    chosen = max(tried["clusterings"], key=lambda one: one["silhouette"])
    config = read_json(folder / "adapter" / "adapter_config.json")
    assert config["expert_ranks"] == chosen["ranks"] and sum(chosen["ranks"]) == 4
    assert config["num_experts"] == len(chosen["ranks"])
    assert config["target_modules"] == sorted(config["target_modules"])
    results = done.results
    counts = results["trainable_parameters"]
    assert counts["ilora,expert_ranks=clusters"]["adapter"] == counts["lora"]["adapter"]
    assert results["clusters"]["ilora,expert_ranks=clusters"] == [{"seed": 0, **tried}]
    page = (done.folder / "report.md").read_text(encoding="utf-8")
    assert "## Experts from clusters" in page and f"| **{chosen['ranks']}** |" in page
    assert "**iLoRA, expert_ranks clusters**, by the representations of sasrec" in page


NAME = "ilora,expert_ranks=clusters"


def test_an_evaluation_reads_the_clusters_that_were_trained_with(done, tmp_path, monkeypatch):
    def elsewhere(*args: Any) -> Any:
        raise AssertionError("clusters are found once")

    runs = copied(done, tmp_path / "copy")
    shutil.rmtree(runs.folder / "evaluate")
    monkeypatch.setattr("recipes.methods.ilora.clusterings", elsewhere)
    assert runs("evaluate", "--arms", ARMS) == 0 and runs("report", "--arms", ARMS) == 0
    assert runs.results["metrics"] == done.results["metrics"]


def test_a_training_that_was_killed_keeps_its_clusters(done, tmp_path):
    runs = copied(done, tmp_path / "copy")
    adapter = runs.folder / "adapt" / f"{NAME}-seed0"
    fingerprint = read_json(adapter / "record.json")["fingerprint"]
    shutil.rmtree(adapter)
    kept = {"source": "sasrec", "clusterings": [{"sizes": [3], "silhouette": 1.0, "ranks": [3, 1]}]}
    write_json(adapter / ".unfinished" / fingerprint[:16] / "clusters.json", kept)
    assert runs("run", "--arms", ARMS) == 0
    assert read_json(adapter / "adapter" / "adapter_config.json")["expert_ranks"] == [3, 1]
    assert runs.results["clusters"][NAME] == [{"seed": 0, **kept}]


def test_a_report_has_a_table_for_each_clustering_of_the_seeds():
    two, three = (
        [{"sizes": [9] * count, "silhouette": 0.5, "ranks": [1] * count}] for count in (2, 3)
    )
    seeds = [{"seed": seed, "source": "s", "clusterings": two} for seed in (0, 2)]
    arms = {"a": {"title": "A"}}
    alike = clusters_section({"a": seeds}, arms)
    assert alike.count("**A**, by the representations of s:") == alike.count("| experts |") == 1
    unlike = clusters_section({"a": [*seeds, {**seeds[0], "seed": 1, "clusterings": three}]}, arms)
    assert "**A**, seed 0, 2, by the representations of s:\n\n| experts" in unlike
    assert "**A**, seed 1, by" in unlike and unlike.count("| experts |") == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("expert_ranks: []", r"expert_ranks=\[\] must be a list of ints, or `clusters`"),
        (
            "expert_ranks: clusters, top_k: 3",
            "'clusters' may find as few as 2 experts, so top_k=3 has no place: choose 2, or leave",
        ),
    ],
)
def test_settings_that_name_no_experts_are_refused(option, message, tmp_path, capsys):
    assert Runs(tmp_path)("run", "--arms", f"[{{method: ilora, {option}}}]") == 2
    assert re.search(message, refused(capsys.readouterr().err))


def test_what_is_done_is_not_done_again_and_another_recommender_makes_other_clusters(done, capsys):
    assert done("run", "--arms", ARMS) == 0
    assert redone(capsys.readouterr().out) == []
    assert done("run", "--arms", ARMS, "--recommender.seed", 1) == 0
    assert "adapt ilora,expert_ranks=clusters seed 0" in redone(capsys.readouterr().out)
