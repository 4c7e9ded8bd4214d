"""The fused layers against the plain ones that they stand on, on random shapes and dtypes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, fast
from peft_ilora.config import GateFormName
from peft_ilora.fast.dropout import DropMask, draw_mask, rescale
from peft_ilora.fast.linear import FusedLinear, Linear
from peft_ilora.layers.update import GatedLinear
from peft_ilora.routing.binding import RoutingState

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass
class Case:
    """A model and a batch."""

    seed: int
    shape: tuple[int, ...]
    widths: tuple[int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    routed: bool
    trained_base: bool
    fields: dict


@st.composite
def cases(draw: st.DrawFn) -> Case:
    small = st.integers(1, 5)
    lengths = draw(st.lists(st.integers(0, 4), max_size=2))
    experts = draw(small)
    form = draw(st.sampled_from(get_args(GateFormName)))
    by_token = draw(st.integers(0, 3)) == 0
    gate = draw(st.sampled_from(["linear", "linear" if by_token else "trunk"]))
    per_module = by_token or (gate == "linear" and draw(st.booleans()))
    dtypes = [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ]
    fields = {
        "num_experts": experts,
        "r": draw(small),
        "gate": gate,
        "gate_form": form,
        "gate_input": "token" if by_token else "routing",
        "gate_scope": "per_module" if per_module else "shared",
        "missing_routing": "uniform",
        "routing_dim": 3,
    }
    if form == "softmax":
        fields["expert_ranks"] = draw(st.lists(small, min_size=experts, max_size=experts))
    return Case(
        seed=draw(st.integers(0, 2**31)),
        shape=(draw(small), *lengths),
        widths=(draw(small), draw(small)),
        dtypes=draw(st.sampled_from(dtypes)),
        routed=not by_token and draw(st.booleans()),
        trained_base=draw(st.booleans()),
        fields=fields,
    )


class Attention(nn.Module):
    """Siblings of one input, and a layer after them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, out)
        self.k_proj = nn.Linear(width, out, bias=False)
        self.v_proj = nn.Linear(width, 2 * out)
        self.o_proj = nn.Linear(out, width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.v_proj(x).chunk(2, dim=-1)
        return self.o_proj(torch.tanh(self.q_proj(x)) * first + self.k_proj(x) * second)


def made(case: Case) -> PeftModel:
    torch.manual_seed(case.seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = ILoRAConfig(target_modules=targets, **case.fields)
    base, adapter = case.dtypes
    model = get_peft_model(Attention(*case.widths).to(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ilora_gate" in name:
            parameter.data = torch.randn(parameter.shape).to(adapter)
        else:
            parameter.requires_grad_(case.trained_base)
    return model


def computed(model: PeftModel, case: Case) -> list[Tensor]:
    """The output, and the gradient of everything that has one."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (*case.shape, case.widths[0])
    x = torch.randn(shape, generator=generator).to(case.dtypes[0]).requires_grad_()
    z = torch.randn(case.shape[0], 3, generator=generator).requires_grad_()
    output = model(x * 1, **({"routing_embeds": z} if case.routed else {}))
    output.float().square().sum().backward()
    leaves = [x, z, *model.parameters()]
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@contextmanager
def plain_layers() -> Iterator[None]:
    fast.uninstall()
    try:
        yield
    finally:
        fast.install()


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(cases())
def test_fused_layers_compute_what_the_plain_ones_do(case) -> None:
    fused = made(case)
    with plain_layers():
        plain = made(case)
    tolerance = TOLERANCE[case.dtypes[0]]
    pairs = list(zip(computed(fused, case), computed(plain, case), strict=True))
    for ours, expected in pairs:
        assert ours.dtype == expected.dtype
        scale = expected.abs().max().item() + 1 if expected.numel() else 1
        torch.testing.assert_close(ours / scale, expected / scale, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("installed", [True, False])
def test_one_call_decides_which_layers_are_made(installed) -> None:
    config = ILoRAConfig(target_modules=["0"])
    try:
        if not installed:
            fast.uninstall()
        layer = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config).base_model.model[0]
    finally:
        fast.install()
    assert type(layer) is (Linear if installed else lora.Linear)
    assert type(layer.lora_variant["default"]) is (FusedLinear if installed else GatedLinear)


@pytest.mark.parametrize("first_is_fused", [True, False])
@pytest.mark.parametrize("active", ["first", "second"])
def test_adapters_made_before_and_after_the_call_share_a_layer(first_is_fused, active) -> None:
    """Each update gets its input in the dtype that it wants: here a half base, float32 adapters."""
    x = torch.randn(2, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))

    def output(calls) -> Tensor:
        torch.manual_seed(1)
        config = ILoRAConfig(target_modules=["0"], init_lora_weights=False, routing_dim=3)
        try:
            calls[0]()
            model = get_peft_model(nn.Sequential(nn.Linear(4, 3)).bfloat16(), config, "first")
            calls[1]()
            model.add_adapter("second", config)
        finally:
            fast.install()
        model.set_adapter(active)
        return model(x, routing_embeds=torch.ones(2, 3))

    mixed = [fast.install, fast.uninstall] if first_is_fused else [fast.uninstall, fast.install]
    fused = [fast.install, fast.install]
    torch.testing.assert_close(output(mixed), output(fused), atol=0.1, rtol=0.1)


# ------------------------------------------------------------------ each form in a language model

FORMS = get_args(GateFormName)
SIBLINGS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def pair(make_adapted):
    """The same model with fused and with plain layers, in float64."""

    def make(**fields) -> tuple[PeftModel, PeftModel]:
        fields = {"target_modules": SIBLINGS, "r": 1} | fields
        fused = make_adapted(**fields).double()
        with plain_layers():
            return fused, make_adapted(**fields).double()

    return make


@pytest.fixture
def same_masks(monkeypatch) -> None:
    """Let the plain layers' dropout draw as the fused one does: siblings share a mask."""
    drawn: list[tuple[Tensor, DropMask]] = []

    def forward(dropout: nn.Dropout, x: Tensor) -> Tensor:
        if not dropout.training:
            return x
        mask = next((mask for of, mask in drawn if of is x), None)
        if mask is None:
            mask = draw_mask(dropout.p)
            assert mask is not None
            drawn.append((x, mask))
        return x * mask.kept(x) * rescale(dropout.p)

    monkeypatch.setattr(nn.Dropout, "forward", forward)


def trained(model: PeftModel, ids: Tensor, z: Tensor) -> dict[str, Tensor]:
    """The loss, and the gradients of everything that has one."""
    torch.manual_seed(5)
    z = z.double().requires_grad_()
    loss = model.train()(input_ids=ids, labels=ids, routing_embeds=z, use_cache=False).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach(), "z": z.grad}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", ["linear", "trunk"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_each_form_trains_as_with_plain_layers(
    pair, same_masks, ids, z, form, gate, dropout
) -> None:
    fused, plain = pair(gate_form=form, gate=gate, lora_dropout=dropout)
    found = trained(fused, ids, z)
    assert_same(found, trained(plain, ids, z))
    assert all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_each_form_trains_in_checkpointed_blocks_as_with_plain_layers(
    pair, same_masks, ids, z, form, reentrant
) -> None:
    fused, plain = pair(gate_form=form, gate="trunk", lora_dropout=0.4)
    fused.enable_input_require_grads()
    fused.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(trained(fused, ids, z), trained(plain, ids, z))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", ["linear", "trunk"])
def test_each_form_generates_as_with_plain_layers(pair, ids, z, form, gate) -> None:
    fused, plain = pair(gate_form=form, gate=gate)
    given = {"max_new_tokens": 3, "num_beams": 2, "output_logits": True}
    found = [
        model.generate(
            input_ids=ids, routing_embeds=z.double(), return_dict_in_generate=True, **given
        )
        for model in (fused, plain)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    for ours, expected in zip(found[0].logits, found[1].logits, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_second_gradients_as_with_plain_layers(pair, ids, z, form) -> None:
    found = []
    for model in pair(gate_form=form, gate="trunk"):
        model.set_attn_implementation("eager")  # a fused attention has no second derivative
        z = z.double().detach().requires_grad_()
        loss = model(input_ids=ids, labels=ids, routing_embeds=z, use_cache=False).loss
        (first,) = torch.autograd.grad(loss, [z], create_graph=True)
        first.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert_same(*found)
    assert all(gradient.any() for gradient in found[0].values())


@pytest.mark.parametrize("form", FORMS)
def test_a_trunks_layers_are_modulated_together_as_they_are_alone(
    make_adapted, ids, z, form, monkeypatch
) -> None:
    """A kind of layers is one call of the form in a forward, and one in a whole `generate`."""
    patterns = {"alpha_pattern": {"down_proj": 3}, "rank_pattern": {"o_proj": 1}}
    model = make_adapted(gate="trunk", gate_form=form, r=2, **patterns)
    kinds, calls = type(model.base_model.ilora_gate["default"].form), []
    modulation = kinds.modulation

    def counted(*args, **named):
        calls.append(args)
        return modulation(*args, **named)

    monkeypatch.setattr(kinds, "modulation", counted)
    given = {"input_ids": ids, "routing_embeds": z}
    together = model(**given).logits
    assert len(calls) == 3  # q_proj and v_proj, o_proj, down_proj
    calls.clear()
    model.generate(**given, max_new_tokens=3, num_beams=2)
    assert len(calls) == 3
    calls.clear()
    monkeypatch.setattr(RoutingState, "_remembering", lambda state: None)
    torch.testing.assert_close(model(**given).logits, together)
    assert len(calls) == 8


def test_a_trunk_that_was_read_under_inference_mode_trains(make_adapted, ids, z) -> None:
    model = make_adapted(gate="trunk", gate_form="scale")
    with torch.inference_mode():
        model(input_ids=ids, routing_embeds=z)
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    gate = model.base_model.ilora_gate["default"].project
    assert gate.layer_embedding.weight.grad.any()
