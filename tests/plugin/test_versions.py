"""The stated range of versions, and configurations written by other releases of this package."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_ilora import ILoRAConfig
from peft_ilora.registration import SUPPORTED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "versions.md"

support = pytest.mark.support


# -------------------------------------------------------------------- what is stated


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def dependencies() -> dict[str, str]:
    """Name -> specifier of the plugin's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.fullmatch(r"([\w-]+)(.*)", entry) for entry in project["dependencies"])
    return {match[1]: match[2] for match in found if match}


def runs() -> list[dict[str, str]]:
    """The rows of the table of what was run."""
    section = DOCS.read_text(encoding="utf-8").partition("## What was run")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line[:1] == "|"]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_pyproject_docs_and_the_check_at_import_name_the_same_peft() -> None:
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    assert dependencies()["peft"] == f">={low},<{high}"
    assert f"`peft>={low},<{high}`" in DOCS.read_text(encoding="utf-8")


def test_the_docs_name_the_floor_of_torch() -> None:
    assert f"`torch{dependencies()['torch']}`" in DOCS.read_text(encoding="utf-8")


def test_the_table_holds_the_pinned_versions_and_the_oldest_peft() -> None:
    table = runs()
    clean = [row for row in table if row["failed"] == "0" and int(row["passed"]) > 100]
    pins = pinned()
    names = ("PEFT", "transformers", "torch")
    pair = {name: pins[name.lower()] for name in names}
    assert pair in [{name: row[name] for name in names} for row in clean]
    oldest = ".".join(map(str, SUPPORTED[0]))
    assert any(row["PEFT"] == f"{oldest}.0" for row in clean)
    assert all(SUPPORTED[0] <= release(row["PEFT"])[:2] < SUPPORTED[1] for row in table)


# -------------------------------------------------------------------- other releases' files


@pytest.fixture
def rewritten(make_adapted, tmp_path):
    """Save an adapter and edit its configuration file."""

    def rewrite(drop: tuple[str, ...] = (), **entries: Any) -> tuple[PeftModel, Path]:
        model = make_adapted()
        model.save_pretrained(tmp_path)
        file = tmp_path / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: value for name, value in config.items() if name not in drop}
        assert len(kept) == len(config) - len(drop)
        file.write_text(json.dumps(kept | entries), encoding="utf-8")
        return model, tmp_path

    return rewrite


@support("Versions", "an adapter with a setting of a newer release", "refused")
def test_a_setting_of_a_newer_release_is_named(rewritten, make_llama) -> None:
    _, folder = rewritten(gate_horizon=3, peft_version="99.0.0")
    with pytest.raises(ValueError, match=r"does not know: \{'gate_horizon': 3\}.*upgrade"):
        PeftModel.from_pretrained(make_llama(), folder)


@support("Versions", "an adapter of a newer release (its newer settings unused)", "works")
def test_an_unused_setting_of_a_newer_release_is_left_out(rewritten, make_llama, ids, z) -> None:
    model, folder = rewritten(gate_horizon=None, peft_version="99.0.0")
    with pytest.warns(UserWarning, match=r"\['gate_horizon'\] for class ILoRAConfig.*ignored"):
        loaded = PeftModel.from_pretrained(make_llama(), folder).eval()
    expected = model(input_ids=ids, routing_embeds=z).logits
    assert torch.equal(loaded(input_ids=ids, routing_embeds=z).logits, expected)


@support("Versions", "an adapter with a gate of a newer release", "refused")
@pytest.mark.parametrize(
    ("name", "value"),
    [("gate", "fourier"), ("gate_scope", "per_layer"), ("scaling_rank", "root")],
)
def test_a_value_of_a_newer_release_is_refused_by_name(rewritten, make_llama, name, value) -> None:
    _, folder = rewritten(**{name: value})
    with pytest.raises(ValueError, match=f"{name}='{value}' must be one of "):
        PeftModel.from_pretrained(make_llama(), folder)


@support("Versions", "an adapter of an older release (without newer settings)", "works")
def test_a_setting_that_an_older_release_did_not_write_takes_its_default(
    rewritten, make_llama, ids, z
) -> None:
    older = {"num_experts", "r", "lora_alpha", "routing_dim", "target_modules"}
    inherited = {spec.name for spec in fields(ILoRAConfig.__mro__[1])}
    ours = ILoRAConfig().to_dict().keys() - inherited - older
    assert {"gate", "gate_scope", "scaling_rank", "missing_routing"} <= ours
    model, folder = rewritten(drop=tuple(sorted(ours)))
    loaded = PeftModel.from_pretrained(make_llama(), folder).eval()
    defaults = ILoRAConfig()
    for name in ours:
        assert getattr(loaded.peft_config["default"], name) == getattr(defaults, name)
    expected = model(input_ids=ids, routing_embeds=z).logits
    assert torch.equal(loaded(input_ids=ids, routing_embeds=z).logits, expected)


def test_a_lost_setting_that_shapes_the_adapter_does_not_load_silently(
    make_adapted, make_llama, tmp_path
) -> None:
    make_adapted(num_experts=2).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["num_experts"]
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has shape .* and .* in this model"):
        PeftModel.from_pretrained(make_llama(), tmp_path)
