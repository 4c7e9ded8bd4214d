import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.arms import comparison
from recipes.experiment import AdaptConfig, Experiment
from recipes.methods import METHODS
from recipes.pipeline import Pipeline


def adapted(method: str) -> PeftModel:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    settings = METHODS[method].configure(Experiment(adapt=AdaptConfig(rank=8)), {})
    return get_peft_model(base, METHODS[method].peft_config(settings, routing_dim=4)).eval()


def test_ilora_under_a_uniform_gate_equals_lora():
    lora, ilora = adapted("lora"), adapted("ilora")
    torch.manual_seed(1)
    with torch.no_grad():
        weights = {n: p.normal_() for n, p in lora.named_parameters() if p.requires_grad}
        for name, parameter in ilora.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
            elif parameter.requires_grad:
                parameter.zero_()  # the gate: softmax(0) is uniform
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(
            ilora(input_ids=ids, routing_embeds=torch.randn(2, 4)).logits,
            lora(input_ids=ids).logits,
        )


def test_the_user_slot_control_is_plain_lora():
    assert adapted("lora-user-slot").peft_config == adapted("lora").peft_config


def test_experts_that_cannot_share_the_rank_are_refused():
    with pytest.raises(ValueError, match=r"adapt.rank=6 is not divisible by adapt.num_experts=4"):
        comparison(Experiment(adapt=AdaptConfig(rank=6)))
    comparison(Experiment(adapt=AdaptConfig(rank=6, methods=["lora"])))


@pytest.mark.parametrize("methods", [[], ["lora", "lora"]])
def test_no_or_repeated_methods_are_refused(methods):
    with pytest.raises(ValueError, match="name each method once, at least one"):
        Pipeline.of(Experiment(adapt=AdaptConfig(methods=methods)))
