"""docs/parameters.md: the page is what its program counts, and the counts are those by hand."""

import importlib.util
import re
from pathlib import Path

import pytest
from transformers import LlamaConfig

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("parameters", DOCS / "parameters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counts(page: str) -> dict[str, tuple[int, int]]:
    """Line -> parameters of A and B, and of gates."""
    found = re.findall(r"^\| (.+?) \| ([\d,]+) \| ([\d,]+) \|", page, flags=re.MULTILINE)
    return {name: (int(a.replace(",", "")), int(b.replace(",", ""))) for name, a, b in found}


@pytest.mark.slow
@pytest.mark.long
def test_the_page_is_what_the_program_writes(program):
    assert (DOCS / "parameters.md").read_text(encoding="utf-8") == program.page()


def test_counts_of_the_page_are_those_by_hand():
    found = counts((DOCS / "parameters.md").read_text(encoding="utf-8"))
    width, inner, layers, rank = 4096, 11008, 32, 16
    # q, k, v, o have two sides of the width; gate, up and down one of each.
    lora = layers * rank * (4 * 2 * width + 3 * (width + inner))
    assert found["LoRA, r = 16"] == (lora, 0) and found["LoRA, r = 8"] == (lora // 2, 0)
    for k in (2, 4, 8):
        assert found[f"iLoRA, {k} experts (the paper's form)"] == (lora, 64 * k)
    assert found["iLoRA, 4 experts, a gate in every module"] == (lora, 7 * layers * 64 * 4)
    assert found["iLoRA, `scale`, linear gate"] == (lora, 64 * rank)
    assert found["`gate-prompt`: a gate on the prompt"] == (lora, width * 4)
    assert found["`gate-token`: gates on tokens"] == (lora, layers * 4 * (6 * width + inner))


def test_another_shape_can_be_counted(program):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10}
    found = counts(program.page(LlamaConfig(num_attention_heads=2, **sizes)))
    assert found["LoRA, r = 16"] == (16 * (4 * 16 + 3 * 24), 0)
