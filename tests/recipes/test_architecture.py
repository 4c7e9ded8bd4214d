"""The worked examples of docs/architecture.md: they are the code, and one file is an addition."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.about import About
from recipes.datasets import DATASETS
from recipes.datasets.dataset import Dataset, Interactions
from recipes.experiment import AdaptConfig, EvaluateConfig, Experiment, PrepareConfig
from recipes.methods import METHODS
from recipes.methods.method import Method
from recipes.pipeline import Pipeline
from recipes.scoring.predictions import Predictions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"


def examples() -> list[tuple[str, str]]:
    """(path, code) of each code block that names a file in its first line."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"```python\n# (\S+\.py)\n(.*?)\n```", text, flags=re.DOTALL)


def test_the_page_has_a_worked_example_of_each_kind() -> None:
    folders = {str(Path(path).parent) for path, _ in examples()}
    assert {"recipes/datasets", "recipes/recommenders", "recipes/methods"} <= folders


@pytest.mark.parametrize(("path", "code"), examples(), ids=lambda value: value[:40])
def test_a_worked_example_is_the_code_of_its_file(path: str, code: str) -> None:
    assert code in (ROOT / path).read_text(encoding="utf-8")


class Pairs(Dataset):
    """Users meet items 0, 1, 2, .. in order."""

    name = "pairs"
    summary = "items in order"

    def read(self, config, files):
        users, positions = np.indices((20, 6))
        columns = {"user_id": users, "item_id": positions, "position": positions}
        columns["timestamp"] = positions
        table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
        return Interactions(table, [f"title {item}" for item in range(30)])


class ItemFive(Method):
    """Ranks item 5 first."""

    name = "item-five"
    summary = "item 5 first"
    about = About(title="Item 5", meaning="item 5 first", order=5, ranks_by="distance")

    def predict(self, run, arm, seed, rows, config):
        return Predictions(-np.abs(rows.candidates - 5).astype(np.float64))


def test_a_dataset_and_a_method_of_a_test_run_to_a_report_once_they_are_listed(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(DATASETS._entries, Pairs.name, Pairs())
    monkeypatch.setitem(METHODS._entries, ItemFive.name, ItemFive())
    experiment = Experiment(
        out=str(tmp_path),
        prepare=PrepareConfig(dataset="pairs", protocol="chronological", num_candidates=5),
        adapt=AdaptConfig(methods=["item-five"]),
        evaluate=EvaluateConfig(rows="last", ks=[1, 3], bootstrap_samples=100),
    )
    results = Pipeline.of(experiment).run_all()
    assert [arm["name"] for arm in results["arms"]] == ["random", "item-five", "popularity"]
    (found,) = [
        entry["value"]
        for entry in results["metrics"]
        if (entry["method"], entry["key"]) == ("item-five", "hit_ratio@1/ranking")
    ]
    assert found == 1.0  # every last window's target is item 5
    assert results["llm"] is None
    assert not (tmp_path / "recommenders").exists()
