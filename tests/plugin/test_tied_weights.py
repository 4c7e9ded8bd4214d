"""Tied embeddings: a merge, an export and a saved adapter are the model that was routed."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig, export_lora

ROUTING_DIM = 8
TARGETS = {
    "embedding": ["embed_tokens"],
    "head": ["lm_head"],
    "both": ["embed_tokens", "lm_head"],
    "with others": ["q_proj", "embed_tokens"],
    "pattern": r".*(q_proj|embed_tokens)",
}
BASES = {"tied": True, "untied": False}
TIES = {"adapters tied": True, "adapters untied": False}

pytestmark = [
    # PEFT says so of every adapter on a tied layer, of what it saves along, and of untying
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]


def base(tied: bool, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 60}
    config = LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval().to(dtype)


def wrapped(tied: bool, dtype: torch.dtype = torch.float32, **fields) -> PeftModel:
    config = ILoRAConfig(**{"routing_dim": ROUTING_DIM, "task_type": "CAUSAL_LM"} | fields)
    model = get_peft_model(base(tied, dtype), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def says(model, ids: Tensor, z: Tensor | None = None) -> Tensor:
    return model(input_ids=ids, **({} if z is None else {"routing_embeds": z})).logits


@pytest.mark.support("Layer types", "tied embeddings, with tied adapters or without", "works")
@pytest.mark.parametrize("adapters", TIES)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("bases", BASES)
def test_every_form_of_an_instance_is_the_model_that_was_routed(
    bases, targets, adapters, ids, z, tmp_path
) -> None:
    tied = BASES[bases]
    model = wrapped(tied, target_modules=TARGETS[targets], ensure_weight_tying=TIES[adapters])
    ids, z = ids[:1], z[:1]
    expected = says(model, ids, z)
    with model.disable_adapter():
        assert not torch.allclose(says(model, ids), expected, atol=0.1)

    def check(other, *routing: Tensor) -> None:
        torch.testing.assert_close(says(other, ids, *routing), expected, rtol=1e-4, atol=1e-4)

    model.save_pretrained(tmp_path / "ilora")
    check(PeftModel.from_pretrained(base(tied), tmp_path / "ilora").eval(), z)
    export_lora(model, z, tmp_path / "lora")
    check(PeftModel.from_pretrained(base(tied), tmp_path / "lora").eval())
    merged = copy.deepcopy(model).merge_and_unload(routing_embeds=z)
    check(merged)
    merged.save_pretrained(tmp_path / "merged")
    check(type(merged).from_pretrained(tmp_path / "merged").eval())
    check(model, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tied_adapters_stay_one_through_casts_copies_training_and_loading(
    dtype, ids, z, tmp_path
) -> None:
    model = wrapped(True, dtype, target_modules=["embed_tokens"], ensure_weight_tying=True)
    model = copy.deepcopy(model.to(torch.bfloat16).float()).train()
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    inner = model.eval().get_base_model()
    embedding, head = inner.model.embed_tokens, inner.lm_head
    assert torch.equal(head.lora_A["default"].weight, embedding.lora_embedding_B["default"].t())
    assert torch.equal(head.lora_B["default"].weight, embedding.lora_embedding_A["default"].t())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 3 and not any("lm_head" in name for name in names)
    expected = says(model, ids, z)
    model.save_pretrained(tmp_path)
    for low in (False, True):
        again = PeftModel.from_pretrained(base(True), tmp_path, low_cpu_mem_usage=low).eval()
        again.get_base_model().load_state_dict(
            {k: v for k, v in inner.state_dict().items() if "lora_" not in k}, strict=False
        )
        torch.testing.assert_close(says(again, ids, z), expected, rtol=1e-4, atol=1e-4)


def test_one_gradient_is_the_sum_of_both_uses(ids, z) -> None:
    model = wrapped(True, target_modules=["embed_tokens"], ensure_weight_tying=True)
    other = wrapped(True, target_modules=["embed_tokens", "lm_head"])
    inner, apart = model.get_base_model(), other.get_base_model()
    a = inner.model.embed_tokens.lora_embedding_A["default"]
    b = inner.model.embed_tokens.lora_embedding_B["default"]
    other.load_state_dict(model.state_dict(), strict=False)
    apart.lm_head.lora_A["default"].weight.data = b.data.t().clone()
    apart.lm_head.lora_B["default"].weight.data = a.data.t().clone()
    for one in (model, other):
        one(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    first, second = apart.model.embed_tokens, apart.lm_head
    for got, parts in (
        (a, (first.lora_embedding_A["default"].grad, second.lora_B["default"].weight.grad.t())),
        (b, (first.lora_embedding_B["default"].grad, second.lora_A["default"].weight.grad.t())),
    ):
        torch.testing.assert_close(got.grad, parts[0] + parts[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["embedding", "head", "both"])
def test_a_temporary_merge_of_one_tied_layer_is_refused_and_changes_nothing(
    targets, ids, z
) -> None:
    model = wrapped(True, target_modules=TARGETS[targets])
    expected = says(model, ids, z)
    with pytest.raises(ValueError, match="shares its base weight.*merge_and_unload"):
        model.merge_adapter(routing_embeds=z[:1])
    assert torch.equal(says(model, ids, z), expected)


@pytest.mark.parametrize("form", ["softmax", "scale"])
def test_tied_adapters_merge_once_and_come_out_again(form, ids, z) -> None:
    fields = {"ensure_weight_tying": True, "gate_form": form}
    model = wrapped(True, target_modules=["embed_tokens"], **fields)
    expected = says(model, ids, z)
    model.merge_adapter(routing_embeds=z[:1])
    torch.testing.assert_close(says(model, ids[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(says(model, ids, z), expected, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload(routing_embeds=z[:1], safe_merge=True)
    torch.testing.assert_close(says(merged, ids[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings is True


@pytest.mark.parametrize(
    "gate",
    [{"gate_scope": "per_module"}, {"gate": "trunk", "gate_form": "scale"}],
    ids=["per_module", "trunk"],
)
def test_tied_adapters_with_gates_of_their_own_are_merged_apart(gate, ids, z) -> None:
    fields = {"ensure_weight_tying": True, **gate}
    model = wrapped(True, target_modules=["embed_tokens"], **fields)
    expected = says(model, ids, z)
    with pytest.raises(ValueError, match="shares its base weight"):
        model.merge_adapter(routing_embeds=z[:1])
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(says(merged, ids[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    assert merged.config.tie_word_embeddings is False


def test_a_second_adapter_is_tied_too(ids, z) -> None:
    model = wrapped(True, target_modules=["embed_tokens"], ensure_weight_tying=True)
    before = says(model, ids, z)
    config = ILoRAConfig(
        routing_dim=ROUTING_DIM, target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    model.add_adapter("second", config)
    model.set_adapter("second")
    inner = model.get_base_model()
    inner.model.embed_tokens.lora_embedding_A["second"].data.normal_()
    assert inner.lm_head.lora_B["second"].weight.abs().sum() > 0
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(says(model, ids, z), before)


def test_patterns_that_part_the_two_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="rank_pattern or alpha_pattern sets total ranks"):
        wrapped(
            True,
            target_modules=["embed_tokens"],
            ensure_weight_tying=True,
            rank_pattern={"lm_head": 2},
        )


def test_what_peft_writes_onto_the_configuration_stays_there(tmp_path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=9))
    config = ILoRAConfig(target_modules=["c_attn"], routing_dim=ROUTING_DIM)
    with pytest.warns(UserWarning, match="fan_in_fan_out is set to False but"):
        model = get_peft_model(gpt, config)
    assert config.fan_in_fan_out is True
    assert (config.r, config.lora_alpha, config.total_rank) == (4, 16, 16)
    assert model.get_base_model().transformer.h[0].attn.c_attn.r["default"] == 16
    model.save_pretrained(tmp_path)
    assert ILoRAConfig.from_pretrained(tmp_path).fan_in_fan_out is True
