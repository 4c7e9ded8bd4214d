"""One instance of each gate form: exported as PEFT's LoRA, merged, taken out again, or refused."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_ilora import ILoRAConfig, export_lora

FORMS = ["softmax", "sigmoid", "scale", "shift", "scale_shift", "square"]
SHIFTING = ["shift", "scale_shift"]
KINDS = ["Linear", "Conv1D", "Conv1d", "Conv2d", "Conv2d, groups", "Embedding"]
DIM = 5
EXACT = {"rtol": 0, "atol": 1e-12}
support = pytest.mark.support
pytestmark = [
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),
]


class One(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def base_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = {
        "Linear": (nn.Linear(4, 6), torch.randn(3, 5, 4)),
        "Conv1D": (Conv1D(6, 4), torch.randn(3, 5, 4)),
        "Conv1d": (nn.Conv1d(4, 6, 3), torch.randn(3, 4, 7)),
        "Conv2d": (nn.Conv2d(4, 6, 3), torch.randn(3, 4, 5, 5)),
        "Conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5)),
        "Embedding": (nn.Embedding(9, 6), torch.randint(0, 9, (3, 5))),
    }
    layer, x = layers[kind]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return One(layer).double(), x.double() if x.is_floating_point() else x


def cases(*, bias_free_only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> list[Any]:
    found = [(form, kind) for form in FORMS for kind in KINDS if kind not in without]
    return [
        pytest.param(form, kind, id=f"{form}-{kind}")
        for form, kind in found
        if not (kind in bias_free_only and form in SHIFTING)
        and not (kind == "Conv2d, groups" and form == "square")
    ]


def adapted(form: str, kind: str, **fields: Any) -> tuple[PeftModel, nn.Module, Tensor, Tensor]:
    base, x = base_of(kind)
    settings = {"num_experts": 2, "r": 2, "lora_alpha": 6, "routing_dim": DIM, "gate_form": form}
    config = ILoRAConfig(
        **settings | {"target_modules": ["layer"], "fan_in_fan_out": kind == "Conv1D"} | fields
    )
    model = get_peft_model(copy.deepcopy(base), config).double().eval()
    with_values(model)
    return model, base, x, torch.randn(3, DIM).double()


def with_values(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ilora_gate" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "lora" not in k}


@support("Adapter lifecycle", "export and merge one instance of each gate form", "works")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("form", "kind"), cases(bias_free_only=("Embedding",)))
@torch.no_grad()
def test_an_export_gives_the_instances_outputs_in_peft(form, kind, rslora, tmp_path) -> None:
    model, base, x, z = adapted(form, kind, use_rslora=rslora, init_lora_weights="gaussian")
    expected = model(x, routing_embeds=z)
    export_lora(model, z[1:2], tmp_path)
    config = LoraConfig.from_pretrained(tmp_path)
    assert config.lora_bias == (form in SHIFTING)
    if form in SHIFTING:
        assert config.init_lora_weights is True
    plain = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False).double()
    assert type(plain.base_model).__name__ == "LoraModel"
    got = plain(x)
    torch.testing.assert_close(got[1], expected[1], **EXACT)
    assert not torch.allclose(got[0], expected[0], atol=1e-3)
    keys = {
        key.rpartition("layer.")[2] for key in load_file(tmp_path / "adapter_model.safetensors")
    }
    assert ("lora_B.bias" in keys) == (form in SHIFTING)


@support("Adapter lifecycle", "export and merge one instance of each gate form", "works")
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("form", "kind"), cases(bias_free_only=("Embedding",), without=("Conv2d, groups",))
)
@torch.no_grad()
def test_an_instance_is_merged_and_taken_out_again(form, kind, safe) -> None:
    model, _, x, z = adapted(form, kind)
    before, expected = weights_of(model), model(x, routing_embeds=z)
    for _ in range(2):
        model.merge_adapter(routing_embeds=z[1:2], safe_merge=safe)
        torch.testing.assert_close(model(x)[1], expected[1], **EXACT)
        assert not torch.allclose(model(x)[0], expected[0], atol=1e-3)
        model.unmerge_adapter()
        for name, value in weights_of(model).items():
            torch.testing.assert_close(value, before[name], **EXACT)
    torch.testing.assert_close(model(x, routing_embeds=z), expected, **EXACT)
    merged = model.merge_and_unload(routing_embeds=z[2:], safe_merge=safe)
    assert type(merged) is One
    torch.testing.assert_close(merged(x)[2], expected[2], **EXACT)


@pytest.mark.parametrize("form", SHIFTING)
@torch.no_grad()
def test_a_merge_adds_the_scaled_bias_that_was_computed_by_hand(form) -> None:
    model, base, _, z = adapted(form, "Linear")
    layer = model.base_model.model.layer
    t = model.gate_weights(z)[0, -4:]
    b = layer.lora_B["default"].weight
    bias = base.layer.bias + 6 / 4 * b @ t
    model.merge_adapter(routing_embeds=z[:1])
    torch.testing.assert_close(layer.base_layer.bias, bias, **EXACT)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.bias, base.layer.bias, **EXACT)
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(merged.layer.bias, bias, **EXACT)
    _, folded = adapted(form, "Linear")[0].base_model.plain_lora(z[:1])
    torch.testing.assert_close(folded["layer.lora_B.bias"], b @ t, **EXACT)


@pytest.mark.parametrize("form", SHIFTING)
@torch.no_grad()
def test_without_a_routing_a_shifting_form_is_a_plain_lora_and_needs_no_bias(
    form, tmp_path
) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 6, bias=False)).double()
    config = ILoRAConfig(
        gate_form=form, routing_dim=DIM, target_modules=["0"], missing_routing="uniform"
    )
    model = get_peft_model(base, config).double().eval()
    with_values(model)
    x = torch.randn(3, 4).double()
    expected = model(x)
    plain, folded = model.base_model.plain_lora(None)
    assert not plain.lora_bias and list(folded) == ["0.lora_B.weight"]
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, **EXACT)
    model.unmerge_adapter()
    torch.testing.assert_close(model.merge_and_unload()(x), expected, **EXACT)


@torch.no_grad()
def test_two_adapters_with_biases_merge_into_one_bias_and_leave_it_one_by_one() -> None:
    model, _, x, z = adapted("shift", "Linear")
    fields = {"num_experts": 3, "r": 1, "routing_dim": DIM, "target_modules": ["layer"]}
    model.add_adapter("other", ILoRAConfig(gate_form="scale_shift", gate="mlp", **fields))
    model.double()
    with_values(model)
    before = weights_of(model)
    model.base_model.set_adapter(["default", "other"])
    expected = model(x, routing_embeds=z)
    model.merge_adapter(["default"], routing_embeds=z[:1])
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"], routing_embeds=z[:1])
    torch.testing.assert_close(model(x)[0], expected[0], **EXACT)
    model.unmerge_adapter()
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, before[name], **EXACT)
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(merged(x)[0], expected[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_half_precision_base_keeps_its_dtype_and_gets_the_bias(
    dtype,
) -> None:
    base, x = base_of("Linear")
    config = ILoRAConfig(gate_form="shift", routing_dim=DIM, target_modules=["layer"])
    model = get_peft_model(base.to(dtype), config).eval()
    with_values(model)
    layer, z = model.base_model.model.layer, torch.randn(1, DIM)
    assert layer.lora_B["default"].weight.dtype == torch.float32
    before = layer.base_layer.bias.clone()
    t = model.gate_weights(z)[0]
    wanted = before + (layer.scaling["default"] * layer.lora_B["default"].weight @ t).to(dtype)
    model.merge_adapter(routing_embeds=z)
    assert layer.base_layer.bias.dtype == dtype
    torch.testing.assert_close(layer.base_layer.bias, wanted)
    assert model(x.to(dtype)).dtype == dtype
    model.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.bias, before, rtol=0, atol=2e-2)


def two(second: nn.Module, **fields: Any) -> PeftModel:
    """Two adapted layers, of which the second cannot take a bias."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), second)
    settings = {"gate_form": "shift", "routing_dim": DIM, "target_modules": ["0", "1"]}
    model = get_peft_model(base, ILoRAConfig(**settings | fields)).double()
    with_values(model)
    return model


def pruned(layer: nn.Linear) -> nn.Linear:
    return nn.utils.prune.random_unstructured(layer, "bias", 0.5)


UNABLE = {
    "no bias": (lambda: nn.Linear(4, 4, bias=False), {}, "1 has no bias"),
    "pruned": (lambda: pruned(nn.Linear(4, 4)), {}, "1 has a computed bias"),
    "trained": (lambda: nn.Linear(4, 4), {"bias": "lora_only"}, "0 has a bias that the adapter"),
}


@support("Adapter lifecycle", "merge a shift into a layer that cannot take a bias", "refused")
@pytest.mark.parametrize("name", UNABLE)
def test_layers_that_cannot_take_a_bias_are_found_before_the_first_is_merged(name) -> None:
    make, fields, message = UNABLE[name]
    model = two(make(), **fields)
    z, before = torch.randn(1, DIM), weights_of(model)
    with pytest.raises(ValueError, match=f"{message}.*'default'.*export_lora.*gate_form='scale'"):
        model.merge_adapter(routing_embeds=z)
    if name != "trained":
        with pytest.raises(ValueError, match=message):
            model.merge_and_unload(routing_embeds=z)
    now = weights_of(model)
    assert all(torch.equal(value, now[key]) for key, value in before.items())


def test_a_bias_that_two_modules_share_is_not_merged_into() -> None:
    second = nn.Linear(4, 4)
    model = two(second, target_modules=["0"])
    second.bias = model.base_model.model[0].base_layer.bias
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="0 shares its bias with another module"):
            merge(routing_embeds=torch.randn(1, DIM))


@pytest.mark.parametrize("form", ["scale", "shift"])
def test_a_grouped_convolution_is_exported_but_not_merged(form) -> None:
    model, _, _, z = adapted(form, "Conv2d, groups")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="layer is a convolution of groups=2.*export_lora"):
            merge(routing_embeds=z[:1])


@support("Adapter lifecycle", "export a shift for a layer that PEFT gives no bias", "refused")
@pytest.mark.parametrize("form", SHIFTING)
def test_an_embedding_with_a_shift_is_not_exported_and_nothing_is_written(form, tmp_path) -> None:
    model, _, _, z = adapted(form, "Embedding")
    with pytest.raises(ValueError, match="layer, an embedding: use gate_form='scale'"):
        export_lora(model, z[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="layer has no bias"):
        model.merge_adapter(routing_embeds=z[:1])


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("safe", [False, True])
@torch.no_grad()
def test_a_merge_that_fails_half_way_leaves_the_model_as_it_was(call, safe, monkeypatch) -> None:
    model = two(nn.Linear(4, 4), gate_form="scale_shift")
    x, z = torch.randn(3, 4).double(), torch.randn(3, DIM).double()
    before, expected = weights_of(model), model(x, routing_embeds=z)
    last = model.base_model.model[1]

    def merge(**kwargs: Any) -> None:
        raise MemoryError("no memory for the second layer")

    monkeypatch.setattr(last, "merge", merge)
    with pytest.raises(MemoryError):
        getattr(model, call)(routing_embeds=z[:1], safe_merge=safe)
    monkeypatch.undo()
    now = weights_of(model)
    assert now.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(now[name], value, **EXACT)
    assert torch.equal(now["base_model.model.0.base_layer.bias"], model.base_model.model[0].bias)
    torch.testing.assert_close(model(x, routing_embeds=z), expected, **EXACT)
    merged = getattr(model, call)(routing_embeds=z[:1], safe_merge=safe) or model
    torch.testing.assert_close(merged(x)[0], expected[0], **EXACT)


def test_a_safe_merge_finds_a_bias_that_is_not_finite() -> None:
    model = two(nn.Linear(4, 4))
    model.base_model.model[1].base_layer.bias.data[0] = torch.inf
    before = weights_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected.*broken at 1"):
            merge(safe_merge=True, routing_embeds=torch.randn(1, DIM))
    assert all(torch.equal(v, weights_of(model)[k]) for k, v in before.items())


@torch.no_grad()
def test_disabling_takes_a_merged_bias_out_again() -> None:
    model, base, x, z = adapted("shift", "Linear")
    model.merge_adapter(routing_embeds=z[:1])
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base(x), **EXACT)
    model.merge_adapter(routing_embeds=z[:1])
    with pytest.warns(UserWarning, match="merged"):
        model.set_adapter("default")
    torch.testing.assert_close(
        model.base_model.model.layer.base_layer.bias, base.layer.bias, **EXACT
    )
