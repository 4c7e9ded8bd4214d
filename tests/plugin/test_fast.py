"""The fused layers against the plain ones that they stand on, on random shapes and dtypes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn

from peft_ilora import ILoRAConfig, fast
from peft_ilora.fast.linear import FusedLinear, Linear
from peft_ilora.layers.update import GatedLinear

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
    dtypes = [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ]
    fields = {
        "num_experts": experts,
        "expert_ranks": draw(st.lists(small, min_size=experts, max_size=experts)),
        "gate_scope": draw(st.sampled_from(["shared", "per_module"])),
        "missing_routing": "uniform",
        "routing_dim": 3,
    }
    return Case(
        seed=draw(st.integers(0, 2**31)),
        shape=(draw(small), *lengths),
        widths=(draw(small), draw(small)),
        dtypes=draw(st.sampled_from(dtypes)),
        routed=draw(st.booleans()),
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


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(cases())
def test_fused_layers_compute_what_the_plain_ones_do(case) -> None:
    fused = made(case)
    fast.uninstall()
    try:
        plain = made(case)
    finally:
        fast.install()
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
