"""Merging an instance, or the even mixture, into the base weights, and taking it out again."""

import pytest
import torch
from torch import nn

support = pytest.mark.support


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "base_layer" in k}


@support("Adapter lifecycle", "merge and unmerge one instance", "works")
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_a_merged_instance_is_served_and_taken_out_again(make_adapted, ids, z, scope, safe) -> None:
    model = make_adapted(gate_scope=scope)
    before, expected = weights_of(model), model(input_ids=ids, routing_embeds=z).logits
    model.merge_adapter(routing_embeds=z[1:2], safe_merge=safe)
    assert torch.allclose(model(input_ids=ids).logits[1], expected[1], atol=1e-5)
    assert not torch.allclose(model(input_ids=ids).logits[0], expected[0], atol=1e-3)
    model.unmerge_adapter()
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, before[name], atol=1e-6), name
    assert torch.allclose(model(input_ids=ids, routing_embeds=z).logits, expected, atol=1e-5)


@support("Adapter lifecycle", "merge the even mixture (missing_routing='uniform')", "works")
def test_without_an_instance_uniform_merges_the_even_mixture(make_adapted, ids, z) -> None:
    model = make_adapted(missing_routing="uniform")
    expected = model(input_ids=ids).logits
    model.merge_adapter()
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)


def test_a_merged_adapter_refuses_a_routing_that_it_would_not_read(make_adapted, ids, z) -> None:
    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z[:1].repeat(3, 1)).logits
    model.merge_adapter(routing_embeds=z[:1])
    same = model(input_ids=ids, routing_embeds=z[:1].repeat(3, 1)).logits
    assert torch.allclose(same, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"\['default'\] are merged.*unmerge_adapter\(\) first"):
        model(input_ids=ids, routing_embeds=z)
    with pytest.raises(ValueError, match="unmerge_adapter"), model.routing(z):
        pass


def test_an_unmerge_takes_out_what_was_merged_though_the_gate_has_changed(make_adapted, z) -> None:
    model = make_adapted()
    before = weights_of(model)
    model.merge_adapter(routing_embeds=z[:1])
    with pytest.warns(UserWarning, match="already merged, nothing to do"):
        model.merge_adapter(routing_embeds=z[1:2])
    model.base_model.ilora_gate["default"].project.weight.data.normal_()
    model.unmerge_adapter()
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, before[name], atol=1e-6), name


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged:UserWarning")
def test_disabling_and_switching_unmerge_by_themselves(make_adapted, ids, z) -> None:
    model = make_adapted()
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    model.merge_adapter(routing_embeds=z[:1])
    with model.disable_adapter():
        assert torch.allclose(model(input_ids=ids).logits, base, atol=1e-5)
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.merge_adapter(routing_embeds=z[:1])
    model.set_adapter("default")
    assert torch.allclose(model(input_ids=ids, routing_embeds=z).logits, expected, atol=1e-5)


def test_a_merged_model_saves_the_adapter_and_unloads_merged(
    make_adapted, make_llama, ids, z, tmp_path
) -> None:
    from peft import PeftModel

    model = make_adapted()
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.merge_adapter(routing_embeds=z[:1])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(again(input_ids=ids, routing_embeds=z).logits, expected)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        merged = model.merge_and_unload()
    assert torch.allclose(merged(input_ids=ids).logits[0], expected[0], atol=1e-5)


def test_a_failed_safe_merge_takes_out_what_it_had_merged(make_adapted, z) -> None:
    model = make_adapted()
    before = weights_of(model)
    model.base_model.model.model.layers[1].mlp.down_proj.lora_B["default"].weight.data[0] = (
        torch.nan
    )
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge(safe_merge=True, routing_embeds=z[:1])
        for name, weight in weights_of(model).items():
            assert torch.allclose(weight, before[name], atol=1e-6), name


def test_two_adapters_merge_together_as_they_are_for_one_instance(make_adapted, ids, z) -> None:
    from peft_ilora import ILoRAConfig

    model = make_adapted()
    model.add_adapter("other", ILoRAConfig(num_experts=2, routing_dim=8, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter.data, std=0.1)
    model.base_model.set_adapter(["default", "other"])
    expected = model(input_ids=ids, routing_embeds=z).logits
    merged = model.merge_and_unload(adapter_names=["default", "other"], routing_embeds=z[2:])
    assert torch.allclose(merged(input_ids=ids).logits[2], expected[2], atol=1e-5)


def test_convolutions_and_embeddings_merge_and_unmerge(randomise) -> None:
    from peft import get_peft_model

    from peft_ilora import ILoRAConfig

    torch.manual_seed(0)
    base = nn.Sequential(nn.Embedding(9, 4), nn.Conv1d(5, 6, 3))
    config = ILoRAConfig(target_modules=["0", "1"], routing_dim=8)
    model = randomise(get_peft_model(base, config)).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:
            nn.init.normal_(parameter.data, std=0.3)
    x, z = torch.randint(0, 9, (3, 5)), torch.randn(3, 8)
    before, expected = weights_of(model), model(x, routing_embeds=z)
    model.merge_adapter(routing_embeds=z[:1])
    assert torch.allclose(model(x)[0], expected[0], atol=1e-9)
    model.unmerge_adapter()
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, before[name], atol=1e-9), name


def test_layers_with_active_adapters_of_their_own_merge_those(make_adapted, ids, z) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    from peft_ilora import ILoRAConfig

    model = make_adapted()
    model.add_adapter("other", ILoRAConfig(routing_dim=8, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter.data, std=0.1)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(["default", "other"])
    expected = model(input_ids=ids, routing_embeds=z).logits
    model.merge_adapter(routing_embeds=z[:1])
    assert torch.allclose(model(input_ids=ids).logits[0], expected[0], atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(model(input_ids=ids, routing_embeds=z).logits, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")  # the other adapter's layers
@pytest.mark.parametrize("merged", ["default", "other"])
def test_a_routing_is_refused_where_one_of_two_active_adapters_is_merged(
    make_adapted, ids, z, merged
) -> None:
    from peft_ilora import ILoRAConfig

    model = make_adapted(target_modules=["q_proj"], missing_routing="uniform")
    model.add_adapter("other", ILoRAConfig(routing_dim=8, target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "other"])
    model.merge_adapter([merged], routing_embeds=z[:1])
    with pytest.raises(ValueError, match="not with all of the active"):
        model(input_ids=ids, routing_embeds=z[:1].repeat(3, 1))
    model.unmerge_adapter()
    assert model(input_ids=ids, routing_embeds=z).logits.shape[0] == 3
