"""The gate as an adapter parameter: trained, counted, saved, moved, cast, frozen, deleted."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from peft_ilora import ILoRAConfig, export_lora

WEIGHTS = "adapter_model.safetensors"


def logits(model, ids, z) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, routing_embeds=z).logits


def gate(model, adapter="default") -> nn.Module:
    return model.base_model.ilora_gate[adapter]


def test_parameters_are_those_of_plain_lora_plus_the_gate(make_llama) -> None:
    targets = ["q_proj", "v_proj"]
    plain = get_peft_model(make_llama(), LoraConfig(r=16, target_modules=targets))
    ours = get_peft_model(make_llama(), ILoRAConfig(routing_dim=8, target_modules=targets))
    count = ours.get_nb_trainable_parameters()[0] - plain.get_nb_trainable_parameters()[0]
    assert count == 4 * 8


def test_an_optimiser_step_trains_experts_and_gate(make_adapted, ids, z) -> None:
    model = make_adapted().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    optimiser.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n}
    assert any("ilora_gate" in n for n in changed)


@pytest.mark.support("Adapter lifecycle", "save and load", "works")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_give_identical_logits(
    make_adapted, make_llama, ids, z, tmp_path, scope, kind, low_cpu_mem_usage
) -> None:
    model = make_adapted(gate_scope=scope, gate=kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(logits(loaded, ids, z), logits(model, ids, z))
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    assert all(p.requires_grad for n, p in trainable.named_parameters() if "ilora_gate" in n)


def test_saved_keys_are_our_own_and_hold_the_gate_once(make_adapted, tmp_path) -> None:
    make_adapted().save_pretrained(tmp_path)
    keys = list(load_file(tmp_path / WEIGHTS))
    assert keys.count("base_model.ilora_gate.project.weight") == 1
    assert all(".ilora_" in key for key in keys)
    assert not any(".lora_" in key or "default" in key for key in keys)


@pytest.mark.support("Adapter lifecycle", "load under another name", "works")
def test_load_adapter_under_another_name_and_switching(make_adapted, ids, z, tmp_path) -> None:
    model, other = make_adapted(), make_adapted(num_experts=2, r=3, gate="mlp")
    other.save_pretrained(tmp_path)
    expected = {"default": logits(model, ids, z), "second": logits(other, ids, z)}
    model.load_adapter(tmp_path, adapter_name="second")
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        assert torch.equal(logits(model, ids, z), expected[name])
        assert model.gate_weights(z).shape[1] == {"default": 4, "second": 2}[name]
        active = {n: gate(model, n).project for n in ("default", "second")}
        for key, module in active.items():
            assert all(p.requires_grad == (key == name) for p in module.parameters())


def test_adapters_of_different_routing_width_are_told_apart(make_adapted, ids, z) -> None:
    model = make_adapted()
    model.add_adapter(
        "wide", ILoRAConfig(routing_dim=11, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.set_adapter("wide")
    with pytest.raises(ValueError, match="adapter 'wide' was made with routing_dim=11"):
        model(input_ids=ids, routing_embeds=z)
    model(input_ids=ids, routing_embeds=torch.zeros(3, 11))


@pytest.mark.support("Adapter lifecycle", "add, set, delete", "works")
def test_deleting_an_adapter_deletes_its_gate(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = logits(model, ids, z)
    config = ILoRAConfig(routing_dim=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model.add_adapter("second", config)
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    assert torch.equal(logits(model, ids, z), expected)


def test_deleting_an_inactive_adapter_leaves_a_frozen_gate_frozen(
    make_adapted, make_llama, tmp_path
) -> None:
    make_adapted().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_llama(), tmp_path)
    model.load_adapter(tmp_path, adapter_name="second")
    model.delete_adapter("second")
    assert not any(p.requires_grad for p in model.parameters())


def test_after_the_last_adapter_is_gone_the_error_says_so(make_adapted, z) -> None:
    model = make_adapted()
    model.base_model.delete_adapter("default")
    with pytest.raises(ValueError, match="adapter_name=None does not exist; there are"):
        model.gate_weights(z)


@pytest.mark.support("Adapter lifecycle", "unload", "works")
def test_a_base_model_is_wrapped_once_and_again_after_unload(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = logits(model, ids, z)
    config = ILoRAConfig(routing_dim=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    message = r"carries an iLoRA adapter already: call unload\(\)"
    with pytest.raises(ValueError, match=message), pytest.warns(UserWarning):
        get_peft_model(model.get_base_model(), config)
    assert torch.equal(logits(model, ids, z), expected)
    again = get_peft_model(model.unload(), config).eval()
    assert logits(again, ids, z).shape == expected.shape


def test_a_generate_of_the_users_own_is_called_and_given_back(make_llama, ids, z) -> None:
    base, calls = make_llama(), []

    def own(*args, **kwargs):
        calls.append(sorted(kwargs))
        return type(base).generate(base, *args, **kwargs)

    base.generate = own
    config = ILoRAConfig(routing_dim=8, target_modules=["q_proj"])
    model = get_peft_model(base, config)
    model.generate(input_ids=ids, routing_embeds=z, max_new_tokens=1)
    assert calls == [["input_ids", "max_new_tokens"]]
    assert model.unload().generate is own


def test_adding_an_adapter_leaves_a_frozen_gate_frozen(make_adapted) -> None:
    model = make_adapted()
    gate(model).requires_grad_(False)
    model.add_adapter("second", ILoRAConfig(routing_dim=8, target_modules=["q_proj"]))
    assert not any(p.requires_grad for p in gate(model).parameters())


@pytest.mark.support("Adapter lifecycle", "disable and restore", "works")
def test_freezing_and_disabling_reach_the_gate(make_adapted) -> None:
    model = make_adapted()
    model.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad("default", True)
    assert all(p.requires_grad for p in gate(model).parameters())
    with model.disable_adapter():
        assert not any(p.requires_grad for p in gate(model).parameters())
    assert all(p.requires_grad for p in gate(model).parameters())


def test_casting_moves_the_gate_with_the_adapter(make_adapted, ids, z) -> None:
    model = make_adapted().to(torch.bfloat16)
    assert next(gate(model).parameters()).dtype == torch.bfloat16
    assert logits(model, ids, z).dtype == torch.bfloat16
    assert model.gate_weights(z).dtype == torch.float32
    assert next(gate(model.to("meta")).parameters()).device.type == "meta"


def test_a_half_precision_base_keeps_adapter_and_gate_in_float32(make_llama, ids, z) -> None:
    model = get_peft_model(
        make_llama().bfloat16(), ILoRAConfig(routing_dim=8, target_modules=["q_proj"])
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()


@pytest.mark.support("Adapter lifecycle", "deep copy", "works")
def test_a_deep_copy_has_a_gate_and_a_routing_of_its_own(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = logits(model, ids, z)
    clone = copy.deepcopy(model)
    gate(clone).project.weight.data.zero_()
    assert not torch.allclose(logits(clone, ids, z), expected)
    assert clone.generate(input_ids=ids, routing_embeds=z, max_new_tokens=2).shape == (3, 9)
    with model.routing(z), pytest.raises(ValueError, match="missing"):
        clone(input_ids=ids)
    assert torch.equal(logits(model, ids, z), expected)


@pytest.mark.support("Adapter lifecycle", "bias and modules_to_save", "works")
def test_modules_to_save_and_bias_travel_with_the_adapter(make_llama, ids, z, tmp_path) -> None:
    config = ILoRAConfig(
        routing_dim=8, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(make_llama(), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded, ids, z), logits(model, ids, z))


@pytest.mark.support("Adapter lifecycle", "layers_to_transform, rank_pattern", "works")
def test_layers_to_transform_exclude_and_rank_pattern_choose_layers(make_llama) -> None:
    model = get_peft_model(
        make_llama(),
        ILoRAConfig(
            routing_dim=8,
            target_modules=["q_proj", "v_proj"],
            exclude_modules=["v_proj"],
            layers_to_transform=[1],
            rank_pattern={"q_proj": 2},
        ),
    )
    adapted = [(n, m.r["default"]) for n, m in model.named_modules() if hasattr(m, "lora_A")]
    assert adapted == [("base_model.model.model.layers.1.self_attn.q_proj", 8)]


# -------------------------------------------------------------------- merging and export


@pytest.mark.support("Adapter lifecycle", "layer_replication", "works")
def test_replicated_layers_have_adapters_of_their_own(
    make_adapted, make_llama, ids, z, tmp_path
) -> None:
    model = make_adapted(layer_replication=[(0, 2), (1, 2)])
    assert len(model.get_base_model().model.layers) == 3
    expected = logits(model, ids, z)
    rows = [logits(model, ids[i, None], z[i, None]) for i in range(3)]
    torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-4, atol=1e-5)
    for folder, loaded in (("ilora", expected), ("lora", expected[:1])):
        if folder == "ilora":
            model.save_pretrained(tmp_path / folder)
        else:
            export_lora(model, z[:1], tmp_path / folder)
        again = PeftModel.from_pretrained(make_llama(), tmp_path / folder)
        got = logits(again, ids, z) if folder == "ilora" else again(input_ids=ids[:1]).logits
        torch.testing.assert_close(got, loaded, rtol=1e-4, atol=1e-5)


def test_merging_without_an_instance_refuses_and_names_the_remedy(llama, ids, z) -> None:
    expected = logits(llama, ids, z)
    for merge in (llama.merge_and_unload, llama.merge_adapter):
        with pytest.raises(ValueError, match=r"merge_and_unload\(routing_embeds=z\)"):
            merge()
    with pytest.raises(ValueError, match="a plain LoRA holds one instance"):
        llama.merge_and_unload(routing_embeds=z)
    assert torch.equal(logits(llama, ids, z), expected)


@pytest.mark.support("Adapter lifecycle", "merge_and_unload one instance", "works")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_merging_one_instance_gives_that_instances_model(make_adapted, ids, z, scope) -> None:
    model = make_adapted(gate_scope=scope)
    expected = logits(model, ids[:1], z[:1])
    merged = model.merge_and_unload(routing_embeds=z[:1], safe_merge=True)
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(merged(input_ids=ids[:1]).logits, expected, rtol=1e-4, atol=1e-5)
    assert "generate" not in vars(merged) and not merged._forward_pre_hooks


@pytest.mark.support("Adapter lifecycle", "export one instance as a plain LoRA", "works")
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_export_is_an_exact_plain_lora(make_adapted, make_llama, ids, z, tmp_path, options) -> None:
    model = make_adapted(**options)
    for row in range(2):
        one = slice(row, row + 1)
        export_lora(model, z[one], tmp_path / str(row))
        plain = PeftModel.from_pretrained(make_llama(), tmp_path / str(row)).eval()
        assert type(plain.base_model).__name__ == "LoraModel"
        torch.testing.assert_close(
            plain(input_ids=ids[one]).logits, logits(model, ids[one], z[one]), rtol=1e-4, atol=1e-5
        )
    keys = load_file(tmp_path / "0" / WEIGHTS)
    assert all(".lora_A." in key or ".lora_B." in key for key in keys)
    config = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 16
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == ["adapter_config.json", WEIGHTS]


def test_export_refuses_what_a_plain_lora_cannot_hold(llama, make_llama, z, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds one instance"):
        export_lora(llama, z, tmp_path / "out")
    with pytest.raises(TypeError, match="without an iLoRA adapter"):
        export_lora(make_llama(), z[:1], tmp_path / "out")
    config = ILoRAConfig(routing_dim=8, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="modules_to_save"):
        export_lora(get_peft_model(make_llama(), config), z[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------- refusals


def test_a_plain_lora_file_is_not_loaded_as_ilora_nor_a_truncated_one(
    make_adapted, make_llama, z, tmp_path
) -> None:
    model = make_adapted()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    truncated = {key: value for key, value in tensors.items() if "gate" not in key}
    save_file(truncated, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete: 1 of 17 tensors are missing.*ilora_gate"):
        PeftModel.from_pretrained(make_llama(), tmp_path)
    plain = {key.replace("ilora_", "lora_"): value for key, value in truncated.items()}
    save_file(plain, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="are a plain LoRA"):
        PeftModel.from_pretrained(make_llama(), tmp_path)


def test_targets_without_a_batch_of_instances_are_refused_before_any_change(make_llama) -> None:
    class Moe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(2, 2)
            self.experts = nn.ModuleDict({"expert_0": nn.Linear(2, 2)})

    base = Moe()
    before = list(base.state_dict())
    with pytest.raises(ValueError, match=r"'experts.expert_0' lies in a mixture of experts"):
        get_peft_model(base, ILoRAConfig(target_modules=["router", "expert_0"]))
    assert list(base.state_dict()) == before
    encoder = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4))
    with pytest.raises(ValueError, match="fast path reads weights past the layer"):
        get_peft_model(encoder, ILoRAConfig(target_modules=["linear1"]))


@pytest.mark.support("Adapter lifecycle", "add_weighted_adapter, bare injection", "refused")
def test_weighted_adapters_mixed_models_and_injection_are_refused(llama, make_llama) -> None:
    with pytest.raises(ValueError, match="add_weighted_adapter cannot combine"):
        llama.add_weighted_adapter(["default"], [1.0], "new")
    config = ILoRAConfig(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="ILORA"):
        PeftMixedModel(make_llama(), config)
    with pytest.raises(ValueError, match="shared state"):
        inject_adapter_in_model(config, make_llama())


def test_a_back_end_that_would_bypass_the_gate_is_refused_by_name() -> None:
    from peft.tuners.lora.awq import AwqLoraLinear

    from peft_ilora.layers.kinds import routed_layer

    layer = AwqLoraLinear.__new__(AwqLoraLinear)
    with pytest.raises(TypeError, match="became a AwqLoraLinear, a back end that would bypass"):
        routed_layer(layer, "q_proj")
