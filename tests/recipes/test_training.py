import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from peft_ilora.gating.gate import Gate
from recipes.llm.checkpoints import last_complete_checkpoint
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.training import answer_loss
from recipes.prompting.projector import Projector


def absolute_positions() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=13, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


def rotary_positions() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(params=[absolute_positions, rotary_positions], ids=lambda make: make.__name__)
def llm(request) -> torch.nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


SHORT, LONG = [3, 4, 5, 6], [7, 8, 9, 3, 4, 10, 11]
"""Prompt and answer; the last 2 and 3 tokens are the answers."""


def reference_loss(llm: torch.nn.Module, ids: list[int], answer: int) -> torch.Tensor:
    """Sum over the answer, one row alone, all logits."""
    logits = llm(input_ids=torch.tensor([ids])).logits[0]
    log_probs = logits.log_softmax(-1)
    return -sum(log_probs[i - 1, ids[i]] for i in range(len(ids) - answer, len(ids)))


def batch_loss(llm: torch.nn.Module, total: int | None = None) -> torch.Tensor:
    padding = len(LONG) - len(SHORT)
    ids = torch.tensor([[0] * padding + SHORT, LONG])
    mask = torch.tensor([[0] * padding + [1] * len(SHORT), [1] * len(LONG)])
    labels = torch.tensor([[-100, *SHORT[-2:]], LONG[-3:]])
    return answer_loss(llm, {"input_ids": ids}, mask, labels, total)


def test_the_loss_of_a_padded_batch_is_that_of_its_rows_alone(llm):
    rows = reference_loss(llm, SHORT, 2) + reference_loss(llm, LONG, 3)
    torch.testing.assert_close(batch_loss(llm), rows / 5)


def test_the_loss_can_be_divided_by_the_targets_of_a_whole_accumulated_batch(llm):
    torch.testing.assert_close(batch_loss(llm, total=20), batch_loss(llm) / 4)


@pytest.mark.parametrize(
    "fields",
    [{"gate": "linear"}, {"gate": "mlp", "gate_scope": "per_module"}, {"gate": "trunk"}],
    ids=["shared", "per_module", "trunk"],
)
def test_every_parameter_of_a_gate_is_charged_to_the_gate(fields):
    config = ILoRAConfig(routing_dim=4, target_modules=["q_proj", "v_proj"], **fields)
    hybrid = HybridModel(
        get_peft_model(rotary_positions(), config), Projector(4, 8), torch.zeros(3, 4), "vector"
    )
    groups = hybrid.trainable_parameters()
    gates = [one for one in hybrid.modules() if isinstance(one, Gate)]
    wanted = {id(parameter) for gate in gates for parameter in gate.parameters()}
    assert wanted and {id(parameter) for parameter in groups["gate"].values()} == wanted
    assert all("lora_A" in name or "lora_B" in name for name in groups["adapter"])


def checkpoint(folder, step: int, state: str | None):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_complete_checkpoint_is_found_and_broken_ones_are_removed(tmp_path):
    checkpoint(tmp_path, 5, '{"global_step": 5}')
    wanted = checkpoint(tmp_path, 10, '{"global_step": 10}')
    cut_off = checkpoint(tmp_path, 15, '{"global_st')
    unfinished = checkpoint(tmp_path, 20, None)
    found = last_complete_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == wanted and found[1].global_step == 10
    assert not cut_off.exists() and not unfinished.exists()


def test_without_a_complete_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert last_complete_checkpoint(tmp_path / "missing") is None
    checkpoint(tmp_path, 5, None)
    assert last_complete_checkpoint(tmp_path) is None
