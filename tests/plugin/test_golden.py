"""Adapters of every released format load, give their recorded outputs, and are still written."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import peft_ilora

HERE = Path(__file__).parent
FOLDERS = sorted(file.parent for file in (HERE / "golden").glob("*/*/manifest.json"))
RELEASE = ".".join(peft_ilora.__version__.split(".")[:2])

PARAMETERS = {
    folder: pytest.param(
        folder,
        id=f"{folder.parent.name}-{folder.name}",
        marks=pytest.mark.support("Versions", f"adapters of format {folder.parent.name}", "works"),
    )
    for folder in FOLDERS
}
golden = pytest.mark.parametrize("folder", PARAMETERS.values())
current = pytest.mark.parametrize(
    "folder", [param for folder, param in PARAMETERS.items() if folder.parent.name == RELEASE]
)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """`make_golden.py`, which holds the formula."""
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def assert_outputs(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["gate_weights"].keys() == expected["gate_weights"].keys()
    pairs = [(actual["logits"], expected["logits"])]
    pairs += [(actual["gate_weights"][n], w) for n, w in expected["gate_weights"].items()]
    for found, wanted in pairs:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=1e-5)


def test_the_current_release_has_its_golden_adapters(maker) -> None:
    assert {f.name for f in FOLDERS if f.parent.name == RELEASE} == set(maker.CONFIGS)


@golden
def test_a_golden_adapter_holds_the_recorded_tensors_and_no_path(folder, maker) -> None:
    assert maker.tensors(folder) == manifest(folder)["tensors"]
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "a-tiny-llama"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000


@golden
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_golden_adapter_loads_and_gives_its_recorded_outputs(
    folder, maker, low_cpu_mem_usage
) -> None:
    model = PeftModel.from_pretrained(
        maker.base_model(), str(folder), low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert_outputs(maker.outputs(model), manifest(folder)["outputs"])


@golden
def test_a_golden_adapter_saved_again_is_the_same_file(folder, maker, tmp_path) -> None:
    maker.save(PeftModel.from_pretrained(maker.base_model(), str(folder)), tmp_path)
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(tmp_path / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    old, new = (
        json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        for place in (folder, tmp_path)
    )
    ours = {"num_experts", "routing_dim", "gate", "gate_scope", "scaling_rank", "missing_routing"}
    ours |= {"r", "lora_alpha", "peft_type", "task_type"}
    assert {name: new[name] for name in ours} == {name: old[name] for name in ours}
    assert new["gate_form"] == old.get("gate_form", "softmax")


@current
def test_an_adapter_made_today_has_the_recorded_format_and_outputs(folder, maker, tmp_path) -> None:
    model = maker.adapted(folder.name)
    maker.save(model, tmp_path)
    assert maker.tensors(tmp_path) == manifest(folder)["tensors"]
    assert_outputs(maker.outputs(model), manifest(folder)["outputs"])


def test_a_released_format_is_never_rewritten(maker, tmp_path) -> None:
    maker.write("9.9", tmp_path)
    written = {
        str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert len(written) == 3 * len(maker.CONFIGS)
    assert not any(re.search(rb'"/|[A-Z]:\\', data) for data in written.values())
    with pytest.raises(FileExistsError):
        maker.write("9.9", tmp_path)
    assert all((tmp_path / name).read_bytes() == data for name, data in written.items())
