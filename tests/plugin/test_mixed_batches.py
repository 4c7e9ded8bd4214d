"""Batches whose rows have different adapters (`adapter_names`)."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig

pytestmark = pytest.mark.support("Adapter lifecycle", "mixed batches (adapter_names)", "works")
NAMES = ["default", "__base__", "other"]


@pytest.fixture
def two(make_adapted, randomise) -> PeftModel:
    model = make_adapted()
    other = ILoRAConfig(num_experts=2, r=3, routing_dim=8, target_modules=["q_proj", "up_proj"])
    model.add_adapter("other", other)
    return randomise(model, seed=4).eval()


def of_each_row_alone(model: PeftModel, run: Callable[[int], Tensor]) -> Tensor:
    rows = []
    for row, name in enumerate(NAMES):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(run(row))
        else:
            model.set_adapter(name)
            rows.append(run(row))
    model.set_adapter("default")
    return torch.cat(rows)


def test_each_row_is_what_its_adapter_makes_of_it_alone(two, ids, z) -> None:
    expected = of_each_row_alone(
        two, lambda i: two(input_ids=ids[i, None], routing_embeds=z[i, None]).logits
    )
    with torch.no_grad():
        got = two(input_ids=ids, routing_embeds=z, adapter_names=NAMES).logits
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_each_row_generates_what_it_generates_alone(two, ids, z, beams) -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    expected = of_each_row_alone(
        two, lambda i: two.generate(input_ids=ids[i, None], routing_embeds=z[i, None], **options)
    )
    got = two.generate(input_ids=ids, routing_embeds=z, adapter_names=NAMES, **options)
    assert torch.equal(got, expected)


def test_rows_mix_evenly_without_routing(make_adapted, randomise, ids, z) -> None:
    model = make_adapted(missing_routing="uniform")
    got = model(input_ids=ids, adapter_names=["default", "__base__", "default"]).logits
    expected = model(input_ids=ids).logits
    assert torch.allclose(got[[0, 2]], expected[[0, 2]], atol=1e-5)
    with model.disable_adapter():
        assert torch.allclose(got[1], model(input_ids=ids).logits[1], atol=1e-5)


def test_a_failure_leaves_no_mixed_batch_behind(two, ids, z) -> None:
    expected = two(input_ids=ids, routing_embeds=z).logits
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        two(input_ids=ids, adapter_names=NAMES)
    with pytest.raises(ValueError, match="routing_embeds has 2 rows"):
        two(input_ids=ids, routing_embeds=z[:2], adapter_names=NAMES)
    assert torch.equal(two(input_ids=ids, routing_embeds=z).logits, expected)


def test_unknown_adapters_training_and_merged_models_are_refused(two, ids, z) -> None:
    with pytest.raises(ValueError, match="non-existing adapter.*nobody"):
        two(input_ids=ids, routing_embeds=z, adapter_names=["nobody", "default", "default"])
    with pytest.raises(ValueError, match="training mode"):
        two.train()(input_ids=ids, routing_embeds=z, adapter_names=NAMES)
    two.eval().merge_adapter(routing_embeds=z[:1])
    with pytest.raises(ValueError, match="merged"):
        two(input_ids=ids, adapter_names=NAMES)


def test_adapters_of_different_routing_width_are_told_apart(make_adapted, ids, z) -> None:
    model = make_adapted()
    model.add_adapter("wide", ILoRAConfig(routing_dim=9, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="differ in routing_dim"):
        model(input_ids=ids, routing_embeds=z, adapter_names=["default", "wide", "wide"])


def test_layers_that_peft_mixes_past_the_gate_are_refused() -> None:
    base = nn.Sequential(nn.Embedding(9, 4))
    model = get_peft_model(base, ILoRAConfig(target_modules=["0"], routing_dim=8)).eval()
    with pytest.raises(ValueError, match="adapts 0, a Embedding.*past the gate.*set_adapter"):
        model(torch.zeros(1, 2).long(), routing_embeds=torch.zeros(1, 8), adapter_names=["default"])


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.support(
    "Adapter lifecycle", "adapter_names given to an embedding or a convolution itself", "refused"
)
def test_a_layer_that_would_mix_past_the_gate_refuses_to_when_called_itself(randomise) -> None:
    bases = {
        "0": (nn.Sequential(nn.Embedding(9, 4)), torch.tensor([[1, 2], [3, 4]])),
        "conv": (Convolution(), torch.randn(2, 4, 3)),
    }
    for target, (base, x) in bases.items():
        config = ILoRAConfig(routing_dim=8, target_modules=[target], missing_routing="uniform")
        model = get_peft_model(base, config)
        model.add_adapter("other", config)
        layer = randomise(model).base_model.model.get_submodule(target)
        expected = layer(x)
        with pytest.raises(ValueError, match=r"'other' adapts this .*, and PEFT mixes .* past the"):
            layer(x, adapter_names=["__base__", "other"])
        assert torch.equal(layer(x, adapter_names=["__base__"] * 2), layer.base_layer(x))
        assert torch.equal(layer(x), expected)
