"""Half precision, autocast and modules on several devices compute what float32 on one does."""

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from peft_ilora import ILoRAConfig, export_lora

PRECISION = "Precision and compilation"
TARGETS = ["q_proj", "v_proj", "down_proj"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISE = {torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 8e-3}
"""Largest deviation from float64, relative to the largest value."""


def item(name: str) -> pytest.MarkDecorator:
    return pytest.mark.support(PRECISION, name, "works")


every_dtype = pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, id=name, marks=item(name)) for name, dtype in DTYPES.items()]
)
every_scope = pytest.mark.parametrize("scope", ["shared", "per_module"])


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights under which the outputs are of order one, so that deviations are told from zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values / parameter.shape[1] ** 0.5)
    return model


def config(scope: str) -> ILoRAConfig:
    return ILoRAConfig(
        routing_dim=8, target_modules=TARGETS, gate_scope=scope, task_type="CAUSAL_LM"
    )


def off(actual: Tensor, expected: Tensor) -> float:
    """Deviation relative to the largest value."""
    wanted = expected.detach().double()
    return float((actual.detach().double() - wanted).abs().max() / wanted.abs().max())


def adapter(model: PeftModel) -> dict[str, Tensor]:
    names = ("lora_A", "lora_B", "ilora_gate")
    return {n: p for n, p in model.named_parameters() if any(kind in n for kind in names)}


@pytest.fixture
def make_pair(make_llama, randomise):
    """A model in a dtype, and its float64 twin with the very same (rounded) weights."""

    def make(dtype, scope: str = "shared", **options: Any) -> tuple[PeftModel, PeftModel]:
        model = randomise(get_peft_model(lively(make_llama()).to(dtype), config(scope), **options))
        twin = get_peft_model(make_llama(), config(scope)).double()
        twin.load_state_dict(model.state_dict())
        return model.eval(), twin.eval()

    return make


@every_dtype
@pytest.mark.parametrize("raised", [True, False], ids=["adapter in float32", "adapter as base"])
@every_scope
def test_outputs_and_gradients_are_those_of_float64_up_to_rounding(
    make_pair, ids, z, dtype, raised, scope
) -> None:
    model, twin = make_pair(dtype, scope, autocast_adapter_dtype=raised)
    wanted = torch.float32 if raised else dtype
    assert {p.dtype for p in adapter(model).values()} == {wanted}
    outputs = model(input_ids=ids, routing_embeds=z).logits
    expected = twin(input_ids=ids, routing_embeds=z.double()).logits
    assert outputs.dtype == dtype
    assert off(outputs, expected) < NOISE[dtype]
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    (outputs * probe.to(dtype)).sum().backward()
    (expected * probe.double()).sum().backward()
    references = adapter(twin)
    for name, parameter in adapter(model).items():
        assert parameter.grad.dtype == wanted
        assert off(parameter.grad, references[name].grad) < 4 * NOISE[dtype], name


@every_dtype
def test_each_row_follows_its_own_routing_in_every_precision(make_pair, ids, z, dtype) -> None:
    model, _ = make_pair(dtype, autocast_adapter_dtype=False)
    with torch.no_grad():
        together = model(input_ids=ids, routing_embeds=z).logits
        for row in range(3):
            one = slice(row, row + 1)
            alone = model(input_ids=ids[one], routing_embeds=z[one]).logits
            assert off(alone, together[one]) < NOISE[dtype]
        changed = model(input_ids=ids, routing_embeds=torch.cat([z[:1], -z[1:]])).logits
    assert off(changed[:1], together[:1]) < NOISE[dtype]
    assert off(changed[1:], together[1:]) > 3 * NOISE[dtype]


@every_dtype
def test_generation_in_every_precision_equals_its_rows(make_pair, ids, z, dtype) -> None:
    model, _ = make_pair(dtype)
    settings: dict[str, Any] = {
        "max_new_tokens": 3,
        "min_new_tokens": 3,
        "do_sample": False,
        "use_cache": True,
    }
    together = model.generate(input_ids=ids, routing_embeds=z, num_beams=2, **settings)
    repeated = model.generate(
        input_ids=ids.repeat(2, 1), routing_embeds=z.repeat(2, 1), num_beams=2, **settings
    )
    assert torch.equal(repeated, together.repeat(2, 1))


@every_dtype
@pytest.mark.parametrize("raised", [True, False], ids=["adapter in float32", "adapter as base"])
def test_an_adapter_comes_back_bit_by_bit_in_its_dtype(
    make_pair, make_llama, ids, z, tmp_path, dtype, raised
) -> None:
    model, _ = make_pair(dtype, autocast_adapter_dtype=raised)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        lively(make_llama()).to(dtype), tmp_path, autocast_adapter_dtype=raised
    ).eval()
    saved, found = adapter(model), adapter(loaded)
    assert saved.keys() == found.keys()
    for name, parameter in found.items():
        assert parameter.dtype == saved[name].dtype and torch.equal(parameter, saved[name]), name
    with torch.no_grad():
        actual = loaded(input_ids=ids, routing_embeds=z).logits
        assert torch.equal(actual, model(input_ids=ids, routing_embeds=z).logits)


@every_dtype
def test_a_merged_instance_is_that_row_up_to_the_rounding_of_its_weights(
    make_pair, ids, z, dtype
) -> None:
    model, twin = make_pair(dtype)
    with torch.no_grad():
        expected = twin(input_ids=ids[:1], routing_embeds=z[:1].double()).logits
        merged = model.merge_and_unload(routing_embeds=z[:1])
        assert {p.dtype for p in merged.parameters()} == {dtype}
        assert off(merged(input_ids=ids[:1]).logits, expected) < 2 * NOISE[dtype]


@item("routing embeddings of any float dtype")
@pytest.mark.parametrize("given", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_routing_is_taken_in_any_float_dtype(make_pair, ids, z, given) -> None:
    model, _ = make_pair(torch.float32)
    rounded = z.to(given)
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids, routing_embeds=rounded).logits,
            model(input_ids=ids, routing_embeds=rounded.float()).logits,
        )


@item("the gate's softmax in float32 under half precision")
def test_a_half_precision_gate_still_divides_in_float32(make_pair, z) -> None:
    model, twin = make_pair(torch.bfloat16, autocast_adapter_dtype=False)
    for weights in (model.gate_weights(z), model.gate_weights(z.bfloat16())):
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(3), rtol=0, atol=1e-6)
        assert off(weights, twin.gate_weights(z.double())) < 0.02


# -------------------------------------------------------------------- autocast


@item("autocast (bfloat16)")
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
@every_scope
def test_autocast_computes_in_half_precision_with_float32_gradients(
    make_pair, ids, z, base, scope
) -> None:
    model, twin = make_pair(base, scope)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(input_ids=ids, routing_embeds=z).logits
        weights = model.gate_weights(z)
    expected = twin(input_ids=ids, routing_embeds=z.double()).logits
    assert outputs.dtype == torch.bfloat16
    assert off(outputs, expected) < NOISE[torch.bfloat16]
    for found in weights.values() if isinstance(weights, dict) else [weights]:
        torch.testing.assert_close(found.sum(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    (outputs * probe).sum().backward()
    (expected * probe.double()).sum().backward()
    references = adapter(twin)
    for name, parameter in adapter(model).items():
        assert parameter.grad.dtype == torch.float32
        assert off(parameter.grad, references[name].grad) < 4 * NOISE[torch.bfloat16], name


@item("autocast (bfloat16)")
def test_generation_under_autocast_follows_each_row(make_pair, ids, z) -> None:
    model, _ = make_pair(torch.float32)
    settings: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = model.generate(input_ids=ids, routing_embeds=z, **settings)
        for row in range(3):
            one = slice(row, row + 1)
            alone = model.generate(input_ids=ids[one], routing_embeds=z[one], **settings)
            assert torch.equal(alone, together[one])


# -------------------------------------------------------------------- several devices


@pytest.fixture
def make_scattered(make_pair, tmp_path):
    """A model whose second block lies on the disk, and its float64 twin."""
    from accelerate import dispatch_model

    def make(scope: str) -> tuple[PeftModel, PeftModel]:
        model, twin = make_pair(torch.float32, scope)
        base = model.get_base_model()
        device_map = dict.fromkeys(("model.embed_tokens", "model.layers.0", "lm_head"), "cpu")
        device_map |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "model.layers.1": "disk"}
        dispatch_model(base, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        assert base.model.layers[1].self_attn.q_proj.lora_B["default"].weight.is_meta
        return model, twin

    return make


@pytest.mark.support("Several devices", "device_map with offloading", "works")
@every_scope
def test_a_block_on_the_disk_is_routed_like_one_in_memory(make_scattered, ids, z, scope) -> None:
    model, twin = make_scattered(scope)
    with torch.no_grad():
        for routing in (z, -z):
            actual = model(input_ids=ids, routing_embeds=routing).logits
            expected = twin(input_ids=ids, routing_embeds=routing.double()).logits
            assert off(actual, expected) < NOISE[torch.float32]
    settings: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    generated = model.generate(input_ids=ids, routing_embeds=z, **settings)
    expected = twin.generate(input_ids=ids, routing_embeds=z.double(), **settings)
    assert torch.equal(generated, expected)


@pytest.mark.support("Several devices", "merge or export of an offloaded adapter", "refused")
def test_an_offloaded_adapter_is_neither_merged_nor_exported(make_scattered, z, tmp_path) -> None:
    model, _ = make_scattered("shared")
    offloaded = r"is offloaded to the CPU or the disk at model\.layers\.1"
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=offloaded):
            merge(routing_embeds=z[:1])
    with pytest.raises(ValueError, match=offloaded):
        export_lora(model, z[:1], tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.support("Several devices", "an adapter added to a base already on the disk", "refused")
@pytest.mark.parametrize("way", ["get_peft_model", "from_pretrained"])
def test_an_adapter_is_not_put_onto_a_base_already_on_the_disk(
    make_llama, make_adapted, tmp_path, way
) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    make_adapted().save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base",
        device_map="auto",
        max_memory={"cpu": 60_000},
        offload_folder=tmp_path / "offloaded",
    )
    assert "disk" in base.hf_device_map.values()
    with pytest.raises(ValueError, match="partly offloaded to the disk"):
        if way == "get_peft_model":
            get_peft_model(base, config("shared"))
        else:
            PeftModel.from_pretrained(base, tmp_path / "adapter")
