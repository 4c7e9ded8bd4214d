"""Properties that hold for every configuration: found by hypothesis, not chosen by us."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig
from peft_ilora.layers.update import GatedUpdate

N_IN, HIDDEN, DIM = 5, 7, 3
ATOL = 1e-9

pytestmark = pytest.mark.support("Gates", "properties (one-hot, uniform, permutations)", "works")
many = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass
class Case:
    """A configuration, a batch and a seed for the weights."""

    fields: dict
    batch: int
    length: int | None
    seed: int

    @property
    def ranks(self) -> list[int]:
        return self.fields["expert_ranks"] or [self.fields["r"]] * self.fields["num_experts"]


@st.composite
def cases(draw: st.DrawFn, **fixed: object) -> Case:
    experts = draw(st.integers(1, 5))
    ranks = st.lists(st.integers(1, 4), min_size=experts, max_size=experts)
    fields = {
        "num_experts": experts,
        "r": draw(st.integers(1, 4)),
        "expert_ranks": draw(st.none() | ranks),
        "lora_alpha": draw(st.floats(0.1, 20)),
        "routing_dim": DIM,
        "gate": draw(st.sampled_from(["linear", "mlp"])),
        "gate_scope": draw(st.sampled_from(["shared", "per_module"])),
        "gate_input": "routing",
        "temperature": draw(st.floats(0.2, 3)),
        "top_k": draw(st.none() | st.integers(1, experts)),
        "use_rslora": draw(st.booleans()),
        "scaling_rank": draw(st.sampled_from(["expert", "total"])),
    }
    return Case(
        fields | fixed, draw(st.integers(1, 5)), draw(st.none() | st.integers(1, 4)), draw(seeds)
    )


seeds = st.integers(0, 2**31)


def base_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(N_IN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, N_IN))


def made(case: Case) -> tuple[PeftModel, Tensor, Tensor]:
    config = ILoRAConfig(target_modules=["0", "2"], **case.fields)
    model = get_peft_model(base_model(case.seed), config).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ilora_gate" in name:
            nn.init.normal_(parameter.data)
    shape = [case.batch, N_IN] if case.length is None else [case.batch, case.length, N_IN]
    return model, torch.randn(shape).double(), torch.randn(case.batch, DIM).double()


def plain(model: PeftModel, case: Case, owned: slice, alpha: float, rank: int) -> PeftModel:
    """PEFT's LoRA with some of the coordinates of an iLoRA."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"])
    lora = get_peft_model(base_model(case.seed), config).double().eval()
    state = {k: v for k, v in model.state_dict().items() if "ilora_gate" not in k}
    for key, value in state.items():
        if "lora_A" in key:
            state[key] = value[owned]
        elif "lora_B" in key:
            state[key] = value[:, owned]
    lora.load_state_dict(state)
    return lora


@many
@given(cases(gate="hard", temperature=1.0, top_k=None), st.data())
def test_with_one_hot_gates_the_model_is_that_experts_plain_lora(case, data) -> None:
    model, x, _ = made(case)
    expert = data.draw(st.integers(0, len(case.ranks) - 1))
    start = sum(case.ranks[:expert])
    rank = case.ranks[expert]
    scaling = model.base_model.model[0].scaling["default"]
    one = plain(model, case, slice(start, start + rank), scaling * rank, rank)
    got = model(x, routing_embeds=torch.full((case.batch,), expert))
    assert torch.allclose(got, one(x), atol=ATOL)


@many
@given(cases(gate_init="zeros", use_rslora=False, top_k=None, scaling_rank="expert"))
def test_with_uniform_gates_the_model_is_plain_lora_of_the_total_rank(case) -> None:
    model, x, z = made(case)
    for name, parameter in model.named_parameters():
        if "ilora_gate" in name:
            nn.init.zeros_(parameter.data)
    total = sum(case.ranks)
    lora = plain(model, case, slice(None), case.fields["lora_alpha"], total)
    assert torch.allclose(model(x, routing_embeds=z), lora(x), atol=ATOL)


def permutation(data: st.DataObject, count: int) -> list[int]:
    return data.draw(st.permutations(range(count)))


@many
@given(cases(), st.data())
def test_permuting_the_batch_permutes_the_output(case, data) -> None:
    model, x, z = made(case)
    order = permutation(data, case.batch)
    got = model(x[order], routing_embeds=z[order])
    assert torch.allclose(got, model(x, routing_embeds=z)[order], atol=ATOL)


@many
@given(st.one_of(cases(), cases(gate_input="token", gate_scope="per_module")))
def test_a_batch_is_its_rows_one_by_one(case) -> None:
    model, x, z = made(case)
    routed = case.fields["gate_input"] == "routing"
    rows = [
        model(x[i, None], **({"routing_embeds": z[i, None]} if routed else {}))
        for i in range(case.batch)
    ]
    whole = model(x, **({"routing_embeds": z} if routed else {}))
    assert torch.allclose(whole, torch.cat(rows), atol=ATOL)


@many
@given(cases(), st.data())
def test_experts_permuted_together_with_gate_rows_change_nothing(case, data) -> None:
    model, x, z = made(case)
    expected = model(x, routing_embeds=z)
    order = permutation(data, len(case.ranks))
    starts = [sum(case.ranks[:k]) for k in range(len(case.ranks))]
    index = [starts[k] + i for k in order for i in range(case.ranks[k])]
    if case.fields["expert_ranks"]:
        case.fields["expert_ranks"] = [case.ranks[k] for k in order]
    permuted, _, _ = made(case)
    state = model.state_dict()
    for key, value in state.items():
        if "lora_A" in key:
            state[key] = value[index]
        elif "lora_B" in key:
            state[key] = value[:, index]
        elif key.endswith(("project.weight", "project.2.weight")):
            state[key] = value[order]
    permuted.load_state_dict(state)
    assert torch.allclose(permuted(x, routing_embeds=z), expected, atol=ATOL)


@many
@given(cases(), st.data())
def test_one_instance_merged_or_exported_is_that_instance(case, data) -> None:
    model, x, z = made(case)
    row = data.draw(st.integers(0, case.batch - 1))
    expected = model(x, routing_embeds=z)[row]
    config, folded = model.base_model.plain_lora(z[row, None])
    lora = get_peft_model(base_model(case.seed), config).double().eval()
    state = {k: v for k, v in model.state_dict().items() if "ilora_gate" not in k}
    for name, b in folded.items():
        state[f"base_model.model.{name.replace('lora_B', 'lora_B.default')}"] = b
    lora.load_state_dict(state)
    assert torch.allclose(lora(x)[row], expected, atol=ATOL)
    layers = [m for m in model.modules() if hasattr(m, "lora_variant")]
    assert all(isinstance(layer.lora_variant["default"], GatedUpdate) for layer in layers)
    assert torch.allclose(
        model.merge_and_unload(routing_embeds=z[row, None])(x)[row], expected, atol=ATOL
    )
