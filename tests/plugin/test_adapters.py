"""What PEFT's users do with adapters: several at once, saved, loaded, frozen, inspected."""

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
)
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn

from peft_ilora import ILoRAConfig


def shows(item: str, state: str = "works") -> pytest.MarkDecorator:
    return pytest.mark.support("Adapter lifecycle", item, state)


KINDS = {
    "default": {"num_experts": 4, "r": 4, "routing_dim": 8},
    "wide": {"num_experts": 2, "r": 3, "routing_dim": 5, "gate": "mlp"},
    "many": {"num_experts": 6, "expert_ranks": [1, 2, 3, 1, 2, 3], "gate_scope": "per_module"},
    "hard": {"num_experts": 3, "gate": "hard", "target_modules": ["up_proj"]},
    "tokens": {"gate_input": "token", "gate_scope": "per_module", "target_modules": ["k_proj"]},
}


def routing_for(name: str) -> dict[str, Tensor]:
    width = KINDS[name].get("routing_dim", 64)
    generator = torch.Generator().manual_seed(7)
    if name == "hard":
        return {"routing_embeds": torch.tensor([0, 2, 1])}
    return (
        {} if name == "tokens" else {"routing_embeds": torch.randn(3, width, generator=generator)}
    )


@pytest.fixture
def several(make_adapted, randomise) -> PeftModel:
    model = make_adapted(**KINDS["default"])
    for name, fields in list(KINDS.items())[1:]:
        model.add_adapter(name, ILoRAConfig(**{"target_modules": ["q_proj", "v_proj"]} | fields))
    return randomise(model).eval()


def run(model: PeftModel, ids: Tensor, name: str) -> Tensor:
    model.set_adapter(name)
    return model(input_ids=ids, **routing_for(name)).logits


@shows("several adapters of different experts, ranks, gates and routing widths")
def test_adapters_of_every_kind_live_side_by_side(several, make_llama, ids, tmp_path) -> None:
    outputs = {name: run(several, ids, name) for name in KINDS}
    values = list(outputs.values())
    assert all(
        not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(values) for b in values[:i]
    )
    several.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_llama(), tmp_path)
    for name in list(KINDS)[1:]:
        again.load_adapter(tmp_path / name, name)
    for name, expected in outputs.items():
        assert torch.equal(run(again.eval(), ids, name), expected), name


@shows("add, set, delete")
def test_deleting_one_leaves_the_others_as_they_were(several, ids) -> None:
    expected = run(several, ids, "many")
    for name in ("default", "wide", "tokens", "hard"):
        several.delete_adapter(name)
    assert torch.equal(run(several, ids, "many"), expected)
    assert not any("default" in name or "wide" in name for name, _ in several.named_parameters())


@shows("two adapters active at once")
def test_two_active_adapters_add_their_updates(make_adapted, randomise, ids, z) -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    model = get_peft_model(base, ILoRAConfig(target_modules=["0"], routing_dim=8))
    model.add_adapter("b", ILoRAConfig(target_modules=["0"], routing_dim=8, num_experts=2))
    randomise(model)
    x, single = torch.randn(3, 4), {}
    with model.disable_adapter():
        plain = model(x)
    for name in ("default", "b"):
        model.set_adapter(name)
        single[name] = model(x, routing_embeds=z) - plain
    model.base_model.set_adapter(["default", "b"])
    both = model(x, routing_embeds=z) - plain
    assert torch.allclose(both, single["default"] + single["b"], atol=1e-6)


@shows("rename (save, load under another name, delete)")
def test_an_adapter_is_renamed_by_loading_it_under_another_name(
    make_adapted, ids, z, tmp_path
) -> None:
    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "renamed")
    model.set_adapter("renamed")
    model.delete_adapter("default")
    assert torch.equal(model(input_ids=ids, routing_embeds=z).logits, expected)
    assert list(model.peft_config) == ["renamed"]


@shows("iLoRA beside LoRA", "refused")
def test_peft_refuses_a_lora_beside_it_and_it_beside_a_lora(make_adapted, make_llama) -> None:
    with pytest.raises(ValueError, match="different peft types"):
        make_adapted().add_adapter("plain", LoraConfig(target_modules=["q_proj"]))
    lora = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="different peft types"):
        lora.add_adapter("routed", ILoRAConfig(target_modules=["q_proj"]))


@shows("hot-swapping", "refused")
def test_peft_refuses_hot_swapping(make_adapted, tmp_path) -> None:
    model = make_adapted()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but ILORA was passed"):
        hotswap_adapter(model, str(tmp_path), "default")


@shows("PEFT's conversion to LoRA", "refused")
def test_peft_refuses_to_convert_all_instances_into_one_lora(make_adapted) -> None:
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(make_adapted(), rank=8)


@shows("transformers' model.load_adapter and add_adapter", "refused")
def test_transformers_own_adapter_methods_are_refused(make_adapted, make_llama, tmp_path) -> None:
    make_adapted().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Please use `get_peft_model` instead"):
        make_llama().load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="Please use `get_peft_model` instead"):
        make_llama().add_adapter(ILoRAConfig(target_modules=["q_proj"]))


@shows("inference_mode and is_trainable")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_a_loaded_adapter_is_frozen_unless_asked_for(
    make_adapted, make_llama, tmp_path, scope
) -> None:
    model = make_adapted(gate_scope=scope)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("ilora_gate" in name for name in trainable)
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    thawed = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    assert {n for n, p in thawed.named_parameters() if p.requires_grad} == trainable
    thawed.set_adapter("default", inference_mode=True)
    assert not any(p.requires_grad for p in thawed.parameters())


@shows("trainable_token_indices")
def test_trained_tokens_travel_with_the_adapter(make_llama, ids, z, tmp_path) -> None:
    config = ILoRAConfig(
        routing_dim=8,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3, 15]},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(make_llama(), config).train()
    before = model(input_ids=ids, routing_embeds=z).logits
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(input_ids=ids, routing_embeds=z, labels=ids).loss.backward()
    optimiser.step()
    after = model(input_ids=ids, routing_embeds=z).logits
    assert not torch.allclose(before, after, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(again(input_ids=ids, routing_embeds=z).logits, after)


@shows("AutoPeftModelForCausalLM")
def test_the_auto_class_loads_base_and_adapter(make_adapted, make_llama, ids, z, tmp_path) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    model = make_adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(again(input_ids=ids, routing_embeds=z).logits, expected, atol=1e-6)


@shows("resizing the base model's embeddings")
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens", "lm_head"]], ids=str)
def test_new_tokens_are_added_before_wrapping_and_saved_along(
    make_llama, randomise, ids, z, tmp_path, targets
) -> None:
    base = make_llama()
    base.resize_token_embeddings(64)
    config = ILoRAConfig(routing_dim=8, target_modules=targets, task_type="CAUSAL_LM")
    model = randomise(get_peft_model(base, config)).eval()
    ids = ids.clone()
    ids[:, 0] = 63
    expected = model(input_ids=ids, routing_embeds=z).logits
    assert expected.shape[-1] == 64
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    fresh = make_llama()
    fresh.resize_token_embeddings(64)
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.allclose(again(input_ids=ids, routing_embeds=z).logits, expected, atol=1e-6)


@shows("resizing the base model's embeddings")
def test_the_base_is_resized_under_an_adapter(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.get_base_model().resize_token_embeddings(70)
    got = model(input_ids=ids, routing_embeds=z).logits
    assert got.shape[-1] == 70 and torch.allclose(got[..., :60], expected, atol=1e-5)


@shows("rescaling an adapter")
def test_the_scale_of_an_adapter_can_be_changed_for_a_while(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z).logits
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    with rescale_adapter_scale(model, multiplier=0.0):
        assert torch.allclose(model(input_ids=ids, routing_embeds=z).logits, base, atol=1e-6)
    assert torch.equal(model(input_ids=ids, routing_embeds=z).logits, expected)


@shows("model and layer status")
def test_peft_reports_the_state_of_layers_and_model(several) -> None:
    status = get_model_status(several)
    assert status.active_adapters == ["default"] and status.enabled is True
    assert status.available_adapters == sorted(KINDS)
    layers = get_layer_status(several)
    assert all(layer.merged_adapters == [] for layer in layers)
    trained = {name for name in KINDS if status.requires_grad[name] is True}
    assert trained == {"default"}
    several.set_requires_grad("wide")
    assert get_model_status(several).requires_grad["wide"] is True
    with several.disable_adapter():
        assert get_model_status(several).enabled is False


@shows("unload")
def test_unloading_returns_the_base_model_as_it_was(make_adapted, make_llama, ids) -> None:
    base = make_adapted().unload()
    assert torch.equal(base(input_ids=ids).logits, make_llama()(input_ids=ids).logits)
    for module in base.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert not hasattr(module, "lora_A")


@shows("selected adapters are saved")
def test_only_the_selected_adapters_are_written(several, tmp_path) -> None:
    several.save_pretrained(tmp_path, selected_adapters=["wide", "hard"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["hard", "wide"]
    assert not (tmp_path / "adapter_model.safetensors").exists()


@shows("PeftMixedModel", "refused")
def test_the_mixed_model_is_refused_by_peft(make_llama) -> None:
    from peft import PeftMixedModel

    with pytest.raises(ValueError, match="'ILORA' is not compatible with the `PeftMixedModel`"):
        PeftMixedModel(make_llama(), ILoRAConfig(target_modules=["q_proj"]))


def test_no_adapter_name_brings_back_loras_keys(make_adapted, ids, z, tmp_path) -> None:
    from safetensors.torch import load_file

    for name in ("weight", "lora_A", "q_proj"):
        model = make_adapted()
        model.save_pretrained(tmp_path / "first")
        model.load_adapter(tmp_path / "first", name)
        model.save_pretrained(tmp_path / name, selected_adapters=[name])
        keys = load_file(tmp_path / name / name / "adapter_model.safetensors")
        assert all(".ilora_" in key for key in keys), name
