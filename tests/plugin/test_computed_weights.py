"""Pruned, normed and parametrised weights of the adapter, the gate or the base."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from peft_ilora import export_lora

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def pruned(module: nn.Module) -> None:
    prune.random_unstructured(module, "weight", 0.5)


def twice_pruned(module: nn.Module) -> None:
    prune.random_unstructured(module, "weight", 0.3)
    prune.random_unstructured(module, "weight", 0.3)


HOW: dict[str, Callable[[nn.Module], object]] = {
    "pruned": pruned,
    "pruned twice": twice_pruned,
    "weight norm": lambda m: parametrizations.weight_norm(m, "weight"),
    "older weight norm": weight_norm,
    "parametrised": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
}
WHERE = {
    "A": lambda m: m.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"],
    "B": lambda m: m.get_base_model().model.layers[1].self_attn.v_proj.lora_B["default"],
    "gate": lambda m: m.base_model.ilora_gate["default"].project,
}


def logits(model, ids, z=None):
    with torch.no_grad():
        return model(input_ids=ids, **({} if z is None else {"routing_embeds": z})).logits


@pytest.mark.support("Adapter lifecycle", "pruned, normed and parametrised adapters", "works")
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("how", HOW)
def test_a_computed_weight_is_what_every_form_of_the_adapter_has(
    how, where, make_adapted, make_llama, ids, z, tmp_path
) -> None:
    torch.manual_seed(0)
    model = make_adapted()
    HOW[how](WHERE[where](model))
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    with torch.no_grad():  # a step: what the hooks of a forward have computed is out of date
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.grad is not None:
                parameter -= 3 * parameter.grad
    model.save_pretrained(tmp_path / "ilora")
    export_lora(model, z[:1], tmp_path / "lora")
    expected = logits(model, ids, z)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "ilora").eval()
    torch.testing.assert_close(logits(loaded, ids, z), expected, rtol=1e-4, atol=1e-5)
    plain = PeftModel.from_pretrained(make_llama(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(plain, ids[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    model.merge_adapter(routing_embeds=z[:1])
    torch.testing.assert_close(logits(model, ids)[:1], expected[:1], rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, ids, z), expected, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(logits(merged, ids[:1]), expected[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", WHERE)
def test_nothing_is_loaded_into_a_computed_weight(where, make_adapted, ids, z, tmp_path) -> None:
    model = make_adapted()
    model.save_pretrained(tmp_path)
    pruned(WHERE[where](model))
    expected = logits(model, ids, z)
    with pytest.raises(ValueError, match=r"is computed .*prune\.remove"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model, ids, z), expected)


@pytest.mark.parametrize("embedding", ["lora_embedding_A", "lora_embedding_B"])
def test_an_embeddings_matrix_may_be_parametrised(
    embedding, make_adapted, make_llama, ids, z, tmp_path
) -> None:
    model = make_adapted(target_modules=["embed_tokens"])
    layer = model.get_base_model().model.embed_tokens
    nn.init.normal_(layer.lora_embedding_A["default"])
    parametrize.register_parametrization(getattr(layer, embedding), "default", Doubled())
    expected = logits(model, ids, z)
    export_lora(model, z[:1], tmp_path / "lora")
    model.save_pretrained(tmp_path / "ilora", save_embedding_layers=False)
    for folder, given in (("lora", None), ("ilora", z[:1])):
        again = PeftModel.from_pretrained(make_llama(), tmp_path / folder).eval()
        torch.testing.assert_close(logits(again, ids[:1], given), expected[:1])
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(logits(merged, ids[:1]), expected[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.support("Adapter lifecycle", "merging into a computed base weight", "refused")
@pytest.mark.parametrize("how", HOW)
def test_a_computed_base_weight_is_routed_and_exported_but_not_merged_into(
    how, make_adapted, make_llama, ids, z, tmp_path
) -> None:
    def changed(base):
        torch.manual_seed(0)
        layer = base.model.layers[0].self_attn.q_proj
        HOW[how](layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer)
        return base

    model = make_adapted()
    changed(model.get_base_model())
    expected = logits(model, ids, z)
    model.save_pretrained(tmp_path / "ilora")
    export_lora(model, z[:1], tmp_path / "lora")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"q_proj is computed .*prune\.remove"):
            merge(routing_embeds=z[:1])
        assert torch.equal(logits(model, ids, z), expected)
    loaded = PeftModel.from_pretrained(changed(make_llama()), tmp_path / "ilora").eval()
    torch.testing.assert_close(logits(loaded, ids, z), expected)
    plain = PeftModel.from_pretrained(changed(make_llama()), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(plain, ids[:1]), expected[:1], rtol=1e-4, atol=1e-5)
