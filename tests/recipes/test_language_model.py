"""One frozen language model, lent to one adapter after the other."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from recipes.llm.language_model import LanguageModel
from recipes.llm.stand_in_tokenizer import new_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
USERS = torch.tensor([[1.0, -1.0, 0.5, 2.0], [0.0, 1.0, -2.0, 1.0]])
TARGETS = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama with biases."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = new_tokenizer(["red fox", "blue owl"], 300)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_bias=True,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fresh(folder) -> Tensor:
    return logits_of(LanguageModel(str(folder), "fp32"))


@pytest.fixture(scope="module")
def shared(folder) -> LanguageModel:
    """Borrowed by every test that leaves it as it was."""
    return LanguageModel(str(folder), "fp32")


@torch.no_grad()
def logits_of(llm: LanguageModel) -> Tensor:
    return llm.base(input_ids=IDS).logits


def lora(**options) -> LoraConfig:
    return LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", **options)


def ilora(**options) -> ILoRAConfig:
    return ILoRAConfig(r=2, routing_dim=4, target_modules=TARGETS, task_type="CAUSAL_LM", **options)


def trained(model: PeftModel, steps: int = 2) -> Tensor:
    """Train a little; the logits afterwards."""
    config = model.active_peft_config
    routed = isinstance(config, ILoRAConfig) and config.gate_input == "routing"
    routing = {"routing_embeds": USERS} if routed else {}
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS, **routing).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **routing).logits


def assert_clean(llm: LanguageModel, fresh: Tensor) -> None:
    assert torch.equal(logits_of(llm), fresh)
    assert not llm.base.training
    assert not any(parameter.requires_grad for parameter in llm.base.parameters())
    for name, module in llm.base.named_modules():
        assert not isinstance(module, BaseTunerLayer), name
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        assert not any(hooks), name
    assert not [name for name, _ in llm.base.named_parameters() if "lora" in name]


CLEAN = [
    lora(),
    lora(use_dora=True),
    lora(init_lora_weights="gaussian"),
    ilora(),
    ilora(gate_scope="per_module"),
    ilora(gate_input="token", gate_scope="per_module"),
]


@pytest.mark.parametrize("config", CLEAN, ids=lambda c: f"{type(c).__name__}")
def test_a_borrower_leaves_the_very_same_base_as_it_was(shared, fresh, config):
    base = shared.base
    with shared.wrapped(deepcopy(config)) as model:
        assert not torch.equal(trained(model), fresh)
    assert shared.base is base
    assert_clean(shared, fresh)


CHANGING = [
    lora(bias="all"),
    lora(init_lora_weights="pissa"),
    lora(init_lora_weights="olora"),
    lora(init_lora_weights="orthogonal"),
    lora(modules_to_save=["lm_head"]),
    lora(trainable_token_indices=[5, 6]),
    ilora(bias="lora_only"),
    ilora(modules_to_save=["lm_head"]),
]


@pytest.mark.parametrize("config", CHANGING, ids=lambda c: f"{type(c).__name__}")
def test_after_an_adapter_that_changes_the_base_the_next_one_gets_a_fresh_one(
    folder, fresh, config
):
    llm = LanguageModel(str(folder), "fp32")
    base = llm.base
    with llm.wrapped(deepcopy(config)) as model:
        trained(model)
    assert llm.base is not base
    assert_clean(llm, fresh)


@pytest.mark.parametrize("config", [lora(), ilora(), lora(bias="all")], ids=["lora", "ilora", "b"])
def test_an_exception_inside_the_block_leaves_the_base_clean(folder, fresh, config):
    llm = LanguageModel(str(folder), "fp32")

    def interrupted():
        with llm.wrapped(deepcopy(config)) as model:
            trained(model, steps=1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_clean(llm, fresh)


def alone(folder: Path, config: PeftConfig) -> Tensor:
    return after_others(LanguageModel(str(folder), "fp32"), config)


def after_others(llm: LanguageModel, config: PeftConfig) -> Tensor:
    torch.manual_seed(7)
    with llm.wrapped(deepcopy(config)) as model:
        return trained(model)


def test_adapters_one_after_the_other_are_what_each_is_alone(folder):
    llm = LanguageModel(str(folder), "fp32")
    routed, plain = alone(folder, ilora()), alone(folder, lora())
    for config, wanted in (
        (ilora(), routed),
        (lora(), plain),
        (lora(bias="all"), None),
        (ilora(), routed),
        (lora(), plain),
    ):
        found = after_others(llm, config)
        assert wanted is None or torch.equal(found, wanted)


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        ilora(),
        lora(use_dora=True),
        *(lora(init_lora_weights=start) for start in (False, "gaussian")),
        *(ilora(init_lora_weights=start) for start in (False, "gaussian")),
        *CHANGING,
    ],
    ids=lambda c: f"{type(c).__name__}",
)
def test_a_saved_adapter_answers_as_it_did_when_it_was_trained(folder, fresh, config, tmp_path):
    llm = LanguageModel(str(folder), "fp32")
    with llm.wrapped(deepcopy(config)) as model:
        wanted = trained(model)
        model.save_pretrained(str(tmp_path))
    routing = {"routing_embeds": USERS} if isinstance(config, ILoRAConfig) else {}
    with llm.adapted(tmp_path) as model, torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS, **routing).logits, wanted)
    assert_clean(llm, fresh)


def test_adapters_of_a_half_precision_base_are_float32(folder):
    llm = LanguageModel(str(folder), "bf16")
    with llm.wrapped(ilora()) as model:
        dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert {p.dtype for p in llm.base.parameters()} == {torch.bfloat16}
