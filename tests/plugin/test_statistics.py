"""Routing statistics and losses: hand-computed figures, and what reaches the gate."""

import math

import pytest
import torch

from peft_ilora.gating.statistics import entropy, load_balancing, statistics

support = pytest.mark.support("Gates", "routing statistics and losses", "works")


def test_figures_of_two_rows() -> None:
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    found = statistics(weights)
    assert found["rows"] == 2
    assert found["utilisation"] == pytest.approx([0.625, 0.375])
    assert found["chosen"] == pytest.approx([1.0, 0.0])
    rows = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)]
    assert found["entropy"] == pytest.approx(sum(rows) / 2)
    assert found["max_entropy"] == pytest.approx(math.log(2))


def test_load_balancing_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    assert load_balancing(torch.eye(4)).item() == pytest.approx(1)
    assert load_balancing(torch.eye(4)[[2, 2, 2]]).item() == pytest.approx(4)
    # choices 3/4 and 1/4, mean weights 0.6 and 0.4: 2 * (0.45 + 0.1)
    weights = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.8, 0.2], [0.2, 0.8]])
    assert load_balancing(weights).item() == pytest.approx(1.1)
    both = torch.tensor([[0.5, 0.3, 0.2]])  # top 2: shares 1/2, 1/2, 0
    assert load_balancing(both, top_k=2).item() == pytest.approx(3 * (0.25 + 0.15))


def test_a_weight_of_zero_adds_no_entropy_and_has_a_finite_gradient() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    weights = torch.softmax(logits, dim=-1)
    value = entropy(weights)
    assert value.item() == pytest.approx(entropy(weights[:, :2]).item())
    value.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 2] == 0


@support
def test_statistics_and_losses_are_those_of_the_last_forward(make_adapted, ids, z) -> None:
    model = make_adapted()
    with pytest.raises(ValueError, match="has routed no forward yet in this thread"):
        model.routing_statistics()
    model(input_ids=ids, routing_embeds=z)
    assert model.routing_statistics() == statistics(model.gate_weights(z))
    model(input_ids=ids[:2], routing_embeds=z[:2])
    assert model.routing_statistics()["rows"] == 2
    losses = model.routing_losses()
    assert losses["entropy"].item() == pytest.approx(entropy(model.gate_weights(z[:2])).item())
    (losses["load_balancing"] + losses["entropy"]).backward()
    gate = model.base_model.ilora_gate["default"].project.weight
    assert gate.grad.abs().sum() > 0


@support
def test_gates_per_module_report_each_module(make_adapted, ids, z) -> None:
    model = make_adapted(gate_scope="per_module")
    model(input_ids=ids, routing_embeds=z)
    found = model.routing_statistics()
    assert len(found) == 8 and "model.layers.0.self_attn.q_proj" in found
    values = [entropy(rows) for rows in model.gate_weights(z).values()]
    assert model.routing_losses()["entropy"].item() == pytest.approx(
        torch.stack(values).mean().item()
    )


@support
def test_token_gates_report_each_token(make_adapted, ids) -> None:
    model = make_adapted(gate_input="token", gate_scope="per_module", top_k=2).train()
    with pytest.raises(ValueError, match="has routed no forward yet"):
        model.routing_statistics()
    model(input_ids=ids)
    found = model.routing_statistics()["model.layers.1.mlp.down_proj"]
    assert found["rows"] == ids.numel()
    assert sum(found["utilisation"]) == pytest.approx(1, abs=1e-5)
    sum(model.routing_losses().values()).backward()
    grads = [p.grad for n, p in model.named_parameters() if "ilora_gate" in n]
    assert all(grad.abs().sum() > 0 for grad in grads)
    with torch.no_grad():
        model(input_ids=ids)
    with pytest.raises(ValueError, match="ran without gradients"):
        model.routing_losses()


@support
def test_adding_the_balancing_term_evens_a_collapsed_gate_out(make_adapted, ids) -> None:
    model = make_adapted().train()
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    z[:, 0] = 1
    gate = model.base_model.ilora_gate["default"].project.weight
    gate.data[0, 0] += 3.0
    batch = {"input_ids": ids.repeat(20, 1), "routing_embeds": z}
    model(**batch)
    before = model.routing_losses()["load_balancing"].item()
    optimiser = torch.optim.SGD([gate], lr=0.2)
    for _ in range(30):
        optimiser.zero_grad()
        with torch.no_grad():
            model(**batch)
        model.routing_losses()["load_balancing"].backward()
        optimiser.step()
    assert before > 2 and model.routing_losses()["load_balancing"].item() < 1.2
