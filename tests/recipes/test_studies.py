"""Every shipped study of adapters, run at a tiny size on a made-up world; stages are shared."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.artifacts import read_json
from recipes.experiment_files import EXPERIMENTS, STUDIES, merged, shipped, yaml_fields
from recipes.study import Study, read_study, run_study

OTHERS = "recbole|s3rec|gate|smollm2|cross-domain"
"""Studies of recommenders are reproductions, those of gates and between datasets have tests of
their own, and SmolLM2 is no part of the suite."""
NAMES = [name for name in shipped(STUDIES) if not re.match(OTHERS, name)]
TINY: dict[str, Any] = {
    "seeds": 1,
    "prepare": {
        "dataset": "synthetic",
        "protocol": "chronological",
        "synthetic": {"num_users": 60},
    },
    "recommender": {"hidden_size": 8, "num_layers": 1, "max_epochs": 1, "batch_size": 64},
    "adapt": {
        "prompt_history": 1,
        "max_steps": 2,
        "batch_size": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "target_modules": ["q_proj", "v_proj"],
        "stand_in": {
            "titles": "token",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "max_steps": 2,
            "batch_size": 4,
        },
    },
    "evaluate": {"bootstrap_samples": 100, "max_users": 6},
}
STEPS = [1, 2]
SMALLER = {"adapt.max_steps": 800, "prepare.num_candidates": 2}
"""By what the values of a varied field are divided."""


def smaller(vary: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The first and the last value of varied fields, scaled down."""
    return {
        key: [max(1, v // SMALLER[key]) if key in SMALLER else v for v in (values[0], values[-1])]
        for key, values in vary.items()
    }


def tiny(name: str, folder: Path) -> Study:
    """A shipped study with its own arms, values and notes, and small sizes."""
    fields = yaml_fields(STUDIES / f"{name}.yaml")
    fields.pop("small", None)
    fields = merged({**fields, "base": str(EXPERIMENTS / f"{fields['base']}.yaml")}, TINY)
    if fields["adapt"].get("validate_at"):
        fields["adapt"] |= {"validate_at": STEPS, "validate_rows": 4}
    fields["vary"] = smaller(fields.get("vary", {}))
    if "published" in fields:
        for block in fields["published"]:
            block["where"] = {k: smaller({k: [v]})[k][0] for k, v in block["where"].items()}
        cells = [
            dict(zip(fields["vary"], own, strict=True)) for own in product(*fields["vary"].values())
        ]
        fields["published"] = [one for one in fields["published"] if one["where"] in cells]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return read_study(str(path), str(folder / "out"), [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_runs_to_its_page(name: str, folder: Path) -> None:
    study = tiny(name, folder)
    run_study(study)
    results = read_json(study.out / "results.json")
    text = (study.out / "study.md").read_text(encoding="utf-8")
    wanted = {
        arm.get("name") or f"{arm['method']}{'-tuned' if 'tune' in arm else ''}"
        for arm in study.cells[0].experiment.arms or ()
    }
    named = {row["arm"].partition(",")[0] for row in results["rows"]}
    assert named >= wanted and len(results["cells"]) == len(study.cells)
    assert all(f"- {note}" in text for note in study.notes)
    assert (study.out / "study.svg").exists() and (study.out / "study.html").exists()
    if study.along is not None:
        assert f" along `{study.along}`" in text
    if any("softmax" in str(arm) or arm["method"] == "ilora" for arm in results["arms"]):
        assert "| mean weights of experts |" in text and (study.out / "gates.svg").exists()


def test_figures_of_the_candidates_are_the_papers() -> None:
    study = read_study("candidates", None, [])
    found = {
        (one.label, one.where["prepare.num_candidates"], arm): own["hit_ratio@1/ranking"]
        for one in study.published
        for arm, own in one.figures.items()
    }
    assert len(found) == 11 and not any(one.same_setting for one in study.published)
    assert found["paper", 20, "ilora"] == pytest.approx(0.5275 * 0.9891, abs=5e-5)
    assert found["LLaRA after its fix", 20, "lora"] == 0.4526
