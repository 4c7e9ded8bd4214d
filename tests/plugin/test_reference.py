"""The layer against a naive transcription of the paper's equation, in float64."""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_ilora import ILoRAConfig, fast

K, R, D, N_IN, N_OUT = 3, 2, 5, 7, 6


@pytest.fixture(autouse=True, params=["plain layers", "fused layers"])
def _layers(request):
    """Every test runs with the plain layers alone, and with the fused ones on top."""
    if request.param == "plain layers":
        fast.uninstall()
    yield
    fast.install()


def naive(weight, bias, experts, gates, z, x, scaling):
    """h_i = W x_i + scaling * sum_k softmax(W_g z_i)_k B_k A_k x_i, one instance at a time."""
    rows = []
    for x_i, z_i in zip(x, z, strict=True):
        omega = torch.softmax(gates @ z_i, dim=0)
        delta = torch.zeros_like(weight)
        for omega_k, (a_k, b_k) in zip(omega, experts, strict=True):
            delta = delta + omega_k * (b_k @ a_k)
        rows.append(x_i @ (weight + scaling * delta).T + bias)
    return torch.stack(rows)


class Two(nn.Module):
    """Two layers, so that a shared gate and per-module gates differ."""

    def __init__(self, conv1d: bool) -> None:
        super().__init__()
        self.first = Conv1D(N_OUT, N_IN) if conv1d else nn.Linear(N_IN, N_OUT)
        self.second = Conv1D(N_OUT, N_OUT) if conv1d else nn.Linear(N_OUT, N_OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def parts(layer, gate, conv1d):
    """Fresh leaf copies of a layer's tensors, expert by expert."""
    weight = layer.base_layer.weight.detach().clone()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    experts = [
        (
            a.detach()[k * R : (k + 1) * R].clone().requires_grad_(),
            b.detach()[:, k * R : (k + 1) * R].clone().requires_grad_(),
        )
        for k in range(K)
    ]
    gates = gate.project.weight.detach().clone().requires_grad_()
    return (weight.T if conv1d else weight), layer.base_layer.bias.detach(), experts, gates


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None and expected is not None
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("scope", ["shared", "per_module"])
@pytest.mark.parametrize("shape", [(4, N_IN), (4, 3, N_IN), (4, 2, 3, N_IN)], ids=str)
def test_layer_equals_the_papers_equation_in_forward_and_gradients(conv1d, scope, shape) -> None:
    torch.manual_seed(0)
    config = ILoRAConfig(
        num_experts=K,
        r=R,
        lora_alpha=3,
        routing_dim=D,
        gate_scope=scope,
        target_modules=["first", "second"],
        fan_in_fan_out=conv1d,
    )
    model = get_peft_model(Two(conv1d), config).double()
    base = model.base_model.model
    for layer in (base.first, base.second):
        nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    z = torch.randn(shape[0], D, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(*shape[:-1], N_OUT, dtype=torch.float64)

    layers, copies = [base.first, base.second], []
    for layer in layers:
        gate = layer.lora_variant["default"].gate
        copies.append(parts(layer, gate, conv1d))
    x_ref, z_ref = x.detach().clone().requires_grad_(), z.detach().clone().requires_grad_()
    hidden = torch.tanh(naive(*copies[0], z_ref, x_ref, 3 / R))
    expected = naive(*copies[1], z_ref, hidden, 3 / R)
    (expected * probe).sum().backward()

    actual = model(x, routing_embeds=z)
    (actual * probe).sum().backward()

    close(actual, expected)
    close(x.grad, x_ref.grad)
    close(z.grad, z_ref.grad)
    for layer, (_, _, experts, _) in zip(layers, copies, strict=True):
        close(layer.lora_A["default"].weight.grad, torch.cat([a.grad for a, _ in experts]))
        close(layer.lora_B["default"].weight.grad, torch.cat([b.grad for _, b in experts], dim=1))
    gate_grads = [gates.grad for *_, gates in copies]
    if scope == "shared":
        close(model.base_model.ilora_gate["default"].project.weight.grad, sum(gate_grads))
    else:
        for layer, grad in zip(layers, gate_grads, strict=True):
            close(layer.ilora_gate["default"].project.weight.grad, grad)


def test_scaling_follows_the_rank_of_an_expert_or_the_total_rank() -> None:
    def scaling(**config) -> float:
        model = get_peft_model(
            Two(False),
            ILoRAConfig(r=4, num_experts=2, lora_alpha=8, target_modules=["first"], **config),
        )
        return model.base_model.model.first.scaling["default"]

    assert scaling() == 8 / 4
    assert scaling(scaling_rank="total") == 8 / 8
    assert scaling(use_rslora=True) == pytest.approx(8 / 2)
    assert scaling(use_rslora=True, scaling_rank="total") == pytest.approx(8 / 8**0.5)
    assert scaling(rank_pattern={"first": 2}) == 8 / 2
    assert scaling(alpha_pattern={"first": 2}) == 2 / 4


def test_a_uniform_gate_equals_plain_lora_of_the_total_rank() -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    base = Two(False)
    state = base.state_dict()
    ours = get_peft_model(
        base, ILoRAConfig(target_modules=["first"], routing_dim=D, missing_routing="uniform")
    )
    plain_base = Two(False)
    plain_base.load_state_dict(state)
    plain = get_peft_model(plain_base, LoraConfig(r=16, lora_alpha=16, target_modules=["first"]))
    for name in ("lora_A", "lora_B"):
        weight = torch.randn_like(getattr(plain.base_model.model.first, name)["default"].weight)
        for model in (ours, plain):
            getattr(model.base_model.model.first, name)["default"].weight.data.copy_(weight)
    x = torch.randn(4, N_IN)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours(x, routing_embeds=torch.zeros(4, D)), plain(x))
