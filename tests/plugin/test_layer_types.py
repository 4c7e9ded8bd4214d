"""Embeddings and convolutions, against the equation written out expert by expert."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, export_lora
from peft_ilora.gating import FORMS

DIM, EXPERTS, ALPHA = 5, 3, 6
NAMES = ["Embedding", "Conv1d", "Conv2d", "Conv3d", "Conv2d, groups", "Linear", "Conv1D"]

pytestmark = pytest.mark.filterwarnings(  # PEFT says so of every grouped convolution
    "ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"
)


class One(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layers: dict[str, tuple[nn.Module, Tensor]] = {
        "Embedding": (nn.Embedding(9, 4), torch.randint(0, 9, (3, 5))),
        "Conv1d": (nn.Conv1d(4, 6, 3, padding=1), torch.randn(3, 4, 7)),
        "Conv2d": (nn.Conv2d(4, 6, 3, stride=2), torch.randn(3, 4, 7, 7)),
        "Conv3d": (nn.Conv3d(4, 6, 1), torch.randn(3, 4, 2, 3, 2)),
        "Conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5)),
        "Linear": (nn.Linear(4, 6), torch.randn(3, 5, 4)),
        "Conv1D": (Conv1D(6, 4), torch.randn(3, 5, 4)),
    }
    return layers[name]


def routed(name: str, randomise, **fields) -> tuple[PeftModel, Tensor, Tensor]:
    layer, x = layer_and_input(name)
    settings = {"num_experts": EXPERTS, "r": 2, "lora_alpha": ALPHA, "routing_dim": DIM}
    config = ILoRAConfig(
        **settings | {"target_modules": ["layer"], "fan_in_fan_out": name == "Conv1D"} | fields
    )
    model = randomise(get_peft_model(One(layer), config))
    for key, parameter in model.named_parameters():
        if "lora_embedding" in key:
            nn.init.normal_(parameter.data, std=0.3)
    return model.double().eval(), x.double() if x.is_floating_point() else x, torch.randn(3, DIM)


def as_lora_of_one_expert(model: PeftModel, name: str, expert: int, ranks: list[int]) -> PeftModel:
    """PEFT's own LoRA that holds one expert only: its coordinates kept, the others zero."""
    layer, _ = layer_and_input(name)
    config = LoraConfig(
        r=sum(ranks),
        lora_alpha=ALPHA * EXPERTS,
        target_modules=["layer"],
        fan_in_fan_out=name == "Conv1D",
    )
    plain = get_peft_model(One(layer), config).double().eval()
    groups = getattr(layer, "groups", 1)
    keep = [k == expert for k, rank in enumerate(ranks) for _ in range(rank // groups)]
    state = {k: v.clone() for k, v in model.state_dict().items() if "ilora_gate" not in k}
    for key in state:
        if "lora_B" in key or "lora_embedding_B" in key:
            state[key][:, ~torch.tensor(keep)] = 0
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("ranks", [None, [4, 2, 2]], ids=["equal", "unequal"])
@pytest.mark.parametrize("scope", ["shared", "per_module"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.support("Layer types", n, "works")) for n in NAMES]
)
def test_a_layer_adds_what_its_experts_as_plain_loras_add_by_their_weights(
    name, scope, ranks, randomise
) -> None:
    model, x, z = routed(name, randomise, gate_scope=scope, expert_ranks=ranks)
    weights = model.gate_weights(z)
    if scope == "per_module":
        weights = weights["layer"]
    with model.disable_adapter():
        base = model(x)
    expected = base.clone()
    for expert in range(EXPERTS):
        one = as_lora_of_one_expert(model, name, expert, ranks or [2] * EXPERTS)(x) - base
        expected += weights[:, expert].view(-1, *[1] * (base.dim() - 1)) * one
    got = model(x, routing_embeds=z)
    assert torch.allclose(got, expected, atol=1e-9)
    assert not torch.allclose(got, base, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_type_trains_its_experts_and_its_gate(name, randomise) -> None:
    model, x, z = routed(name, randomise)
    model(x, routing_embeds=z).square().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 3
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


FREE = [form for form in FORMS if form != "softmax"]
"""The forms without experts."""


def modulated(form: str, given: Tensor, hidden: Tensor) -> Tensor:
    """What a form does to the rank coordinates, [rank, ...], of one instance."""
    rank, ones = len(hidden), [1] * (hidden.dim() - 1)
    if form == "square":
        return torch.tensordot(torch.eye(rank) + given.view(rank, rank), hidden, 1)
    factors, offsets = torch.ones(rank), torch.zeros(rank)
    if form == "sigmoid":
        factors = given
    if "scale" in form:
        factors = 1 + given[:rank]
    if "shift" in form:
        offsets = given[-rank:]
    return factors.view(-1, *ones) * hidden + offsets.view(-1, *ones)


@pytest.mark.parametrize("form", FREE)
@pytest.mark.parametrize("name", [name for name in NAMES if "Linear" not in name])
def test_every_form_modulates_the_coordinates_of_every_layer_type(name, form, randomise) -> None:
    if form == "square" and "groups" in name:
        return  # refused
    model, x, z = routed(name, randomise, gate_form=form)
    layer, given = model.base_model.model.layer, model.gate_weights(z)
    expected = layer.base_layer(x)
    for row in range(3):
        if name == "Embedding":
            hidden = layer.lora_embedding_A["default"][:, x[row]]  # [rank, length]
            update = modulated(form, given[row], hidden).T @ layer.lora_embedding_B["default"].T
        elif name == "Conv1D":
            hidden = layer.lora_A["default"](x[row]).T
            update = modulated(form, given[row], hidden).T @ layer.lora_B["default"].weight.T
        else:
            hidden = layer.lora_A["default"](x[row])  # [rank, ...]
            update = layer.lora_B["default"](modulated(form, given[row], hidden))
        expected[row] += ALPHA / (2 * EXPERTS) * update
    assert torch.allclose(model(x, routing_embeds=z), expected, atol=1e-9)


@pytest.mark.parametrize("form", ["shift", "scale_shift"])
@pytest.mark.parametrize("name", NAMES)
def test_an_instance_of_a_shift_is_a_folded_b_and_a_bias(name, form, randomise) -> None:
    model, x, z = routed(name, randomise, gate_form=form)
    (layer,) = model.base_model.adapters.layers("default")
    given = model.gate_weights(z)[0]
    bias, folded = layer.bias(given), layer.folded_b(given)
    own = layer.update.coordinates
    scaled = FORMS["scale"](model.peft_config["default"]).fold(layer.b, given[:6], own)
    assert torch.equal(folded, scaled if form == "scale_shift" else layer.b)
    for key, parameter in model.named_parameters():
        if "lora_A" in key or "lora_embedding_A" in key:
            parameter.data.zero_()  # the bias alone is left
    update = model(x, routing_embeds=z[:1].expand(3, -1)) - layer.layer.base_layer(x)
    if name not in ("Embedding", "Linear", "Conv1D"):
        update = update.movedim(1, -1)
    assert torch.allclose(update, (ALPHA / 6 * bias).expand_as(update), atol=1e-9)
    assert bias.abs().min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["softmax", "sigmoid", "scale", "square"])
def test_every_layer_type_is_saved_loaded_and_exported(name, form, randomise, tmp_path) -> None:
    if form == "square" and "groups" in name:
        return  # refused
    model, x, z = routed(name, randomise, gate_form=form)
    expected = model(x, routing_embeds=z)
    model.save_pretrained(tmp_path / "ilora")
    again = PeftModel.from_pretrained(One(layer_and_input(name)[0]), tmp_path / "ilora")
    assert torch.allclose(again.double()(x, routing_embeds=z), expected, atol=1e-6)
    export_lora(model, z[1:2], tmp_path / "lora")
    plain = PeftModel.from_pretrained(One(layer_and_input(name)[0]), tmp_path / "lora").double()
    assert torch.allclose(plain(x)[1], expected[1], atol=1e-6)


def test_embeddings_that_multiply_their_output_multiply_the_update_too(randomise) -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    torch.manual_seed(0)
    scaled = Gemma3TextScaledWordEmbedding(9, 4, padding_idx=0, embed_scale=3.0)
    plain = nn.Embedding(9, 4, padding_idx=0)
    plain.load_state_dict(scaled.state_dict(), strict=False)
    config = {"target_modules": ["layer"], "routing_dim": DIM}
    models = [get_peft_model(One(layer), ILoRAConfig(**config)) for layer in (scaled, plain)]
    for key, parameter in models[0].named_parameters():
        if "lora_embedding" in key:
            nn.init.normal_(parameter.data)
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    x, z = torch.randint(1, 9, (3, 5)), torch.randn(3, DIM)
    got, base = (model(x, routing_embeds=z) for model in models)
    assert torch.allclose(got, 3 * base, atol=1e-5)


@pytest.mark.support("Layer types", "MultiheadAttention", "refused")
def test_multihead_attention_is_refused_before_any_change() -> None:
    base = One(nn.MultiheadAttention(4, 2))
    before = list(base.state_dict())
    with pytest.raises(TypeError, match="is a torch MultiheadAttention.*use an attention made of"):
        get_peft_model(base, ILoRAConfig(target_modules=["layer"]))
    assert list(base.state_dict()) == before


def test_groups_that_do_not_divide_the_rank_of_an_expert_are_refused() -> None:
    base = One(nn.Conv2d(4, 6, 3, groups=2))
    with pytest.raises(ValueError, match=r"groups=2.*rank of each expert, but these are \[3\]"):
        get_peft_model(base, ILoRAConfig(target_modules=["layer"], num_experts=4, r=3))


def test_a_position_embedding_without_a_batch_is_refused_by_name() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wpe = nn.Embedding(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.wpe(torch.arange(x.shape[1])[None])

    model = get_peft_model(Positions(), ILoRAConfig(target_modules=["wpe"], routing_dim=DIM))
    with pytest.raises(ValueError, match=r"wpe got an input of shape \(1, 5\).*exclude_modules"):
        model(torch.randn(3, 5, 4), routing_embeds=torch.randn(3, DIM))
