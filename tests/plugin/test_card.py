"""The model card of a saved adapter: what it says, what it keeps, and that its code runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peft_ilora import ILoRAConfig

KINDS: dict[str, dict[str, Any]] = {
    "linear": {"routing_source": "user vectors of a SASRec | trained on MovieLens"},
    "hard": {"gate": "hard"},
    "prompt": {"gate_input": "prompt", "routing_dim": 32},
    "token": {"gate_input": "token", "gate_scope": "per_module"},
}


@pytest.fixture
def make_saved(make_llama, tmp_path):
    def make(**fields: Any) -> tuple[PeftModel, Path]:
        make_llama().save_pretrained(tmp_path / "base")
        settings = {"routing_dim": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, ILoRAConfig(**settings | fields))
        model.save_pretrained(tmp_path / "adapter")
        return model, tmp_path / "adapter"

    return make


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.support("Adapter lifecycle", "model card", "works")
@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_code_runs_in_the_adapters_folder(kind, make_saved, monkeypatch) -> None:
    _, folder = make_saved(**KINDS[kind])
    code = re.search(r"```python\n(.*?)```", card(folder)[1], re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    if kind == "linear":
        subprocess.run([sys.executable, "-c", code[1]], check=True, capture_output=True)
    else:  # starting an interpreter takes seconds
        exec(code[1], {})
    assert (folder / "one-row" / "adapter_config.json").exists() == (kind != "token")


def test_the_card_states_base_model_experts_gate_and_routing(make_saved, tmp_path) -> None:
    metadata, body = card(make_saved(**KINDS["linear"], expert_ranks=[4, 2, 1, 1], top_k=2)[1])
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == "text-generation"
    assert metadata["base_model"] == str(tmp_path / "base")
    assert f"base_model:adapter:{tmp_path / 'base'}" in metadata["tags"]
    for text in (
        f"# iLoRA adapter of {tmp_path / 'base'}",
        "Import `peft_ilora` before",
        "KeyError: 'ILORA'",
        "4, of rank 4, 2, 1, 1 (total rank 8, lora_alpha 16)",
        "`linear`, `gate_input='routing'`, one for all layers (`shared`), top_k 2",
        "vectors, floating point, [batch, 8]",
        "user vectors of a SASRec \\| trained on MovieLens",
        "`q_proj`",
        "### Framework versions",
    ):
        assert text in body, text
    assert "More Information Needed" not in body


def test_a_card_that_somebody_wrote_is_kept(make_saved) -> None:
    model, folder = make_saved()
    path = folder / "README.md"
    path.write_text(path.read_text().replace("library_name", "license: mit\nlibrary_name"))
    path.write_text(path.read_text() + "\n## My notes\n\nTrained on a Sunday.\n")
    model.peft_config["default"].routing_source = "clusters"
    model.save_pretrained(folder)
    metadata, body = card(folder)
    assert metadata["license"] == "mit"
    assert body.count("# iLoRA adapter of") == 1 and "| clusters |" in body
    assert body.rstrip().endswith("## My notes\n\nTrained on a Sunday.")


def test_a_foreign_readme_gets_our_part_on_top_and_keeps_its_own(make_saved, tmp_path) -> None:
    model, _ = make_saved()
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "README.md").write_text("# My model\n\nIt is good.\n")
    model.save_pretrained(folder)
    model.save_pretrained(folder)
    _, body = card(folder)
    assert body.count("# iLoRA adapter of") == 1
    assert "# My model\n\nIt is good." in body


def test_the_card_describes_the_adapters_that_are_saved(make_saved, tmp_path) -> None:
    model, folder = make_saved()
    model.add_adapter("wide", ILoRAConfig(routing_dim=11, target_modules=["v_proj"]))
    model.save_pretrained(folder)
    assert re.findall("## Adapter `(.*)`", card(folder)[1]) == ["default", "wide"]
    assert 'from_pretrained(base, "./wide")' in card(folder)[1]
    model.save_pretrained(tmp_path / "one", selected_adapters=["wide"])
    assert re.findall("## Adapter `(.*)`", card(tmp_path / "one")[1]) == ["wide"]


def test_a_base_model_without_a_name_leaves_no_empty_name(make_adapted, tmp_path) -> None:
    make_adapted().save_pretrained(tmp_path)
    metadata, body = card(tmp_path)
    assert "base_model" not in metadata and metadata["tags"] == ["transformers"]
    assert "base = ...  # the LlamaForCausalLM that was adapted" in body


def test_the_card_of_another_method_is_pefts(make_llama, tmp_path) -> None:
    get_peft_model(make_llama(), LoraConfig()).save_pretrained(tmp_path)
    assert "iLoRA" not in (tmp_path / "README.md").read_text()
