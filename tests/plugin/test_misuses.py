"""Every row of docs/errors.md: the exception is the stated one, word by word, and harms nothing."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from misuses import MISUSES, PAGE, Kit, Misuse, outcome, row

DOCUMENTED = set(PAGE.read_text(encoding="utf-8").splitlines())


@pytest.mark.filterwarnings("ignore")  # several of PEFT's refusals warn first
@pytest.mark.parametrize("case", MISUSES, ids=lambda case: f"{case.area}: {case.title}")
def test_a_misuse_raises_what_the_page_says_and_changes_nothing(case: Misuse, tmp_path) -> None:
    kit = Kit(tmp_path)
    names = list(kit.model.state_dict())
    expected = kit.model(input_ids=kit.ids, routing_embeds=kit.z).logits
    error = outcome(case, kit)
    assert error is not None, "nothing was raised"
    assert row(case, error, tmp_path) in DOCUMENTED, "run python tests/plugin/misuses.py"
    assert (
        list(kit.model.state_dict()) == names
        or "another width" in case.title
        or "together" in case.title
    )
    assert torch.allclose(
        kit.model(input_ids=kit.ids, routing_embeds=kit.z).logits, expected, atol=1e-6
    )


def test_the_page_has_the_rows_of_the_table_and_no_others() -> None:
    rows = [line for line in DOCUMENTED if line.startswith("| ") and "| `" in line]
    assert len(rows) == len(MISUSES) >= 60
