"""Quantised base models: the back ends that PEFT routes through a variant run, others are refused.

A tiny Llama is saved once and loaded through each back end as a user would load it. transformers 5
has no HQQ loader yet, so HQQ's layers are put in by HQQ itself.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from peft_ilora import ILoRAConfig, export_lora
from peft_ilora.layers.kinds import MIXING, UPDATES, routed_layer

TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
MERGE_WARNING = "Merge lora module to .-bit linear may get different generations"


# -------------------------------------------------------------------- the back ends


def four_bit(**options: Any) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
        model = from_pretrained(folder, config)
        for module in model.modules():
            # On CPUs that multiply bfloat16, bitsandbytes repacks a layer at its first inference
            # and can neither train nor merge it from then on: off, alike on every CPU.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model

    return load


def eight_bit(folder: Path) -> nn.Module:
    return from_pretrained(folder, BitsAndBytesConfig(load_in_8bit=True))


def torchao_int8(dynamic: bool) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
        )

        kind = Int8DynamicActivationInt8WeightConfig if dynamic else Int8WeightOnlyConfig
        return from_pretrained(folder, TorchAoConfig(kind()))

    return load


def hqq(folder: Path) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            config = BaseQuantizeConfig(nbits=4, group_size=64)
            layer = HQQLinear(module, config, compute_dtype=torch.float32, device="cpu")
            setattr(model.model.get_submodule(parent), leaf, layer)
    model.hqq_quantized = True  # as HQQ marks a model that it has quantised
    return model.eval()


def from_pretrained(folder: Path, config: Any) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu"
    ).eval()


@dataclass(frozen=True)
class Backend:
    """A way to load a quantised base."""

    package: str
    layer: str
    """PEFT's class for it."""
    load: Callable[[Path], nn.Module]
    rounding: float
    """Bound of |requantised - exact| / |exact| of a merged weight."""
    exact_input: bool = True
    """Whether activations stay as they are; else they are rounded too, row by row, and float noise
    of 1e-7 may tip one of them over to the next step."""

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.exact_input else 5e-3


def back_end(name: str, *args: Any, **options: Any) -> Any:
    marks = pytest.mark.support("Quantised bases", name, "works")
    return pytest.param(Backend(*args, **options), marks=marks, id=name)


BACKENDS = [
    back_end("bitsandbytes 4 bit", "bitsandbytes", "Linear4bit", four_bit(), 0.12),
    back_end(
        "bitsandbytes 4 bit (double quantisation)",
        "bitsandbytes",
        "Linear4bit",
        four_bit(bnb_4bit_use_double_quant=True),
        0.12,
    ),
    back_end(
        "bitsandbytes 8 bit", "bitsandbytes", "Linear8bitLt", eight_bit, 0.012, exact_input=False
    ),
    back_end(
        "torchao int8 (weights)", "torchao", "TorchaoLoraLinear", torchao_int8(dynamic=False), 0.012
    ),
    back_end(
        "torchao int8 (weights and activations)",
        "torchao",
        "TorchaoLoraLinear",
        torchao_int8(dynamic=True),
        0.012,
        exact_input=False,
    ),
    back_end("HQQ 4 bit", "hqq", "HqqLoraLinear", hqq, 0.12),
]


def weight_of(layer: nn.Module) -> Tensor:
    """A quantised layer's weight, dequantised, [out, in]."""
    kind = type(layer).__name__
    if kind == "HQQLinear":
        return layer.dequantize()
    if kind in ("Linear4bit", "Linear8bitLt"):
        from peft.utils.integrations import dequantize_bnb_weight

        return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return layer.weight.dequantize()


def raw(layer: nn.Module) -> Tensor:
    """A quantised layer's stored weight, as it lies in memory."""
    if type(layer).__name__ == "HQQLinear":
        return layer.W_q.data.clone()
    weight = layer.weight
    return (weight.qdata if hasattr(weight, "qdata") else weight.data).clone()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A Llama with layers of one quantisation block, saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def load(backend: Backend, saved: Path) -> Callable[[], nn.Module]:
    """The quantised base, the same at every call."""
    if importlib.util.find_spec(backend.package) is None:
        pytest.skip(f"{backend.package} is not installed: pip install 'peft-ilora[quantised]'")

    def loaded() -> nn.Module:
        torch.manual_seed(0)  # for the adapters that the tests put on it
        return backend.load(saved)

    return loaded


@pytest.fixture
def make(load, randomise) -> Callable[..., PeftModel]:
    """The quantised base with a randomised adapter."""

    def adapted(**config: Any) -> PeftModel:
        settings: dict[str, Any] = {
            "routing_dim": 8,
            "target_modules": TARGETS,
            "task_type": "CAUSAL_LM",
        }
        return randomise(get_peft_model(load(), ILoRAConfig(**settings | config))).eval()

    return adapted


def logits(model: nn.Module, ids: Tensor, **routing: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **routing).logits


def lora_layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def delta(layer: Any, omega: Tensor) -> Tensor:
    """scaling * sum_k w_k B_k A_k of one instance, expert by expert."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rank = a.shape[0] // len(omega)
    parts = (
        w * b[:, k * rank : (k + 1) * rank] @ a[k * rank : (k + 1) * rank]
        for k, w in enumerate(omega)
    )
    return layer.scaling["default"] * sum(parts)


# -------------------------------------------------------------------- what runs


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_quantised_layer_adds_the_papers_update_to_its_base(backend, make, z) -> None:
    model = make()
    layers = lora_layers(model)
    assert len(layers) == 8
    assert {type(layer).__name__ for layer in layers.values()} == {backend.layer}
    omegas = torch.softmax(z @ model.base_model.ilora_gate["default"].project.weight.T, dim=1)
    generator = torch.Generator().manual_seed(5)
    for layer in layers.values():
        x = torch.randn(3, 7, layer.in_features, generator=generator)
        with model.routing(z):
            actual = layer(x)
        updates = torch.stack(
            [x_i @ delta(layer, omega).T for x_i, omega in zip(x, omegas, strict=True)]
        )
        base = layer.base_layer(x)
        assert updates.norm() > 0.1 * base.norm()
        torch.testing.assert_close(actual, base + updates, rtol=1e-4, atol=1e-5)
        exact = x @ weight_of(layer.base_layer).T
        within = 1e-5 if backend.exact_input else 0.02
        assert (base - exact).norm() < within * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["softmax", "scale_shift", "square"])
def test_rows_of_a_quantised_batch_equal_those_rows_alone(backend, form, make, ids, z) -> None:
    model = make(gate_form=form)
    together = logits(model, ids, routing_embeds=z)
    for row in range(3):
        one = slice(row, row + 1)
        alone = logits(model, ids[one], routing_embeds=z[one])
        torch.testing.assert_close(together[one], alone, rtol=0, atol=backend.tolerance)
    others = logits(model, ids, routing_embeds=z.roll(1, 0))
    assert ((together - others).abs().amax((1, 2)) > 10 * backend.tolerance).all()


TRUNK = {"gate": "trunk", "gate_form": "scale_shift"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fields", [{}, {"gate_scope": "per_module"}, TRUNK], ids=str)
def test_training_on_a_quantised_base_reaches_experts_and_gates_only(make, ids, z, fields) -> None:
    model = make(**fields).train()
    layers = lora_layers(model)
    stored = {name: raw(layer.base_layer) for name, layer in layers.items()}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in before)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids, routing_embeds=z).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    after = dict(model.named_parameters())
    assert [n for n, p in before.items() if torch.equal(p, after[n])] == []
    for name, layer in layers.items():
        assert torch.equal(raw(layer.base_layer), stored[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_an_adapter_of_a_quantised_base_is_saved_and_loaded(
    make, load, ids, z, tmp_path, scope
) -> None:
    model = make(gate_scope=scope, gate="mlp")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load(), tmp_path).eval()
    assert torch.equal(logits(loaded, ids, routing_embeds=z), logits(model, ids, routing_embeds=z))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_adapter_joins_on_a_quantised_base_and_disabling_gives_the_base(
    make, load, ids, z
) -> None:
    model = make()
    first = logits(model, ids, routing_embeds=z)
    config = ILoRAConfig(num_experts=2, routing_dim=8, target_modules=TARGETS)
    model.add_adapter("second", config)
    for parameter in (p for n, p in model.named_parameters() if "second" in n):
        nn.init.normal_(parameter, std=0.1)
    model.set_adapter("second")
    second = logits(model, ids, routing_embeds=z)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(load(), ids))
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model, ids, routing_embeds=z), first)
    assert (first - second).abs().max() > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_generate_on_a_quantised_base_scores_as_its_forward(backend, make, ids, z) -> None:
    model = make()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        routing_embeds=z,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    forward = logits(model, out.sequences, routing_embeds=z)
    for step, scores in enumerate(out.logits):
        position = ids.shape[1] + step - 1
        torch.testing.assert_close(scores, forward[:, position], rtol=0, atol=backend.tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_kbit_preparation_with_checkpointing_gives_the_same_gradients(
    load, randomise, ids, z, reentrant
) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        base = prepare_model_for_kbit_training(
            load(),
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        config = ILoRAConfig(routing_dim=8, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = randomise(get_peft_model(base, config)).train()
        assert model.base_model.model.is_gradient_checkpointing == checkpointing
        model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(checkpointing=False), gradients(checkpointing=True)
    assert plain.keys() == recomputed.keys() and len(plain) == 17
    for name, value in plain.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6)


def merge_warnings(backend: Backend) -> AbstractContextManager[Any]:
    if backend.package == "bitsandbytes":
        return pytest.warns(UserWarning, match=MERGE_WARNING)
    return nullcontext()


def weights_with(model: PeftModel, z: Tensor) -> dict[str, list[Tensor]]:
    """Dequantised weights with the update of each instance, by layer name."""
    omegas = model.gate_weights(z)
    return {
        name.removeprefix("base_model.model."): [
            weight_of(layer.base_layer) + delta(layer, omega) for omega in omegas
        ]
        for name, layer in lora_layers(model).items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("safe_merge", [False, True])
@torch.no_grad()
def test_merging_one_instance_requantises_that_instances_weight(
    backend, make, z, safe_merge
) -> None:
    model = make()
    exact = weights_with(model, z)
    with merge_warnings(backend):
        merged = model.merge_and_unload(routing_embeds=z[:1], safe_merge=safe_merge)
    assert not lora_layers(merged)
    for name, (mine, other, _) in exact.items():
        weight = weight_of(merged.get_submodule(name))
        error = (weight - mine).norm() / mine.norm()
        assert error < backend.rounding, name
        assert error < 0.5 * (weight - other).norm() / other.norm(), name


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_merged_instance_is_taken_out_of_a_quantised_base_but_for_its_rounding(
    backend, make, z
) -> None:
    model = make()
    before = {n: weight_of(layer.base_layer) for n, layer in lora_layers(model).items()}
    if backend.package == "torchao":
        with pytest.raises(ValueError, match=r"torchao weight.*use merge_and_unload"):
            model.merge_adapter(routing_embeds=z[:1])
        return
    exact = weights_with(model, z)
    with merge_warnings(backend):
        model.merge_adapter(routing_embeds=z[:1])
    for name, layer in lora_layers(model).items():
        mine = exact[name.removeprefix("base_model.model.")][0]
        error = (weight_of(layer.base_layer) - mine).norm() / mine.norm()
        assert error < backend.rounding, name
    with (
        pytest.warns(UserWarning, match="Unmerge lora module to .-bit linear may get")
        if backend.package == "bitsandbytes"
        else nullcontext()
    ):
        model.unmerge_adapter()
    for name, layer in lora_layers(model).items():
        mine = exact[name.removeprefix("base_model.model.")][0]
        error = (weight_of(layer.base_layer) - before[name]).norm()
        assert error < 2 * backend.rounding * mine.norm(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_mixed_batch_equal_their_adapter_or_are_refused(backend, make, ids, z) -> None:
    model = make()
    names = ["default", "__base__", "default"]
    if backend.layer not in MIXING:
        with pytest.raises(ValueError, match=rf"a {backend.layer}, and PEFT mixes .* past the"):
            model(input_ids=ids, routing_embeds=z, adapter_names=names)
        return
    with torch.no_grad():
        mixed = model(input_ids=ids, routing_embeds=z, adapter_names=names).logits
    expected = logits(model, ids, routing_embeds=z)
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]], rtol=0, atol=backend.tolerance)
    with model.disable_adapter():
        base = logits(model, ids)
    torch.testing.assert_close(mixed[1], base[1], rtol=0, atol=backend.tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_instance_is_a_plain_lora_of_the_same_quantised_base(
    backend, make, load, ids, z, tmp_path
) -> None:
    model = make()
    export_lora(model, z[:1], tmp_path)
    plain = PeftModel.from_pretrained(load(), tmp_path).eval()
    assert type(plain.base_model).__name__ == "LoraModel"
    expected = logits(model, ids[:1], routing_embeds=z[:1])
    torch.testing.assert_close(logits(plain, ids[:1]), expected, rtol=0, atol=backend.tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.support("Quantised bases", "bitsandbytes 4 bit (half precision)", "works")
def test_a_half_precision_four_bit_base_keeps_adapter_and_gate_in_float32(
    saved, ids, z, dtype
) -> None:
    pytest.importorskip("bitsandbytes")
    base = AutoModelForCausalLM.from_pretrained(
        saved,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype),
        dtype=dtype,
        device_map="cpu",
    )
    model = get_peft_model(base, ILoRAConfig(routing_dim=8, target_modules=TARGETS))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = model(input_ids=ids, labels=ids, routing_embeds=z)
    out.loss.backward()
    assert out.logits.dtype == dtype
    trained = [n for n, p in model.named_parameters() if p.grad is not None]
    assert len(trained) == 17 and any("ilora_gate" in name for name in trained)


# -------------------------------------------------------------------- which classes are routed


@cache
def peft_lora_classes() -> dict[str, tuple[set[str], ast.ClassDef]]:
    """PEFT's LoRA layers by name, with their bases: read from source, as many need their package
    to be imported."""
    folder = Path(peft.__file__).parent / "tuners" / "lora"
    classes: dict[str, tuple[set[str], ast.ClassDef]] = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[-1] for base in node.bases}
                classes[node.name] = (bases, node)
    layers = {"LoraLayer"}
    while more := {n for n, (bases, _) in classes.items() if bases & layers} - layers:
        layers |= more
    return {name: classes[name] for name in layers}


def consults_variant(name: str, method: str, classes: dict[str, Any]) -> bool:
    """Whether a class's method, its own or an inherited one, asks `lora_variant`."""
    bases, node = classes[name]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return "lora_variant" in ast.unparse(item)
    return any(consults_variant(base, method, classes) for base in bases & classes.keys())


BYPASSING = {
    "AqlmLoraLinear",
    "AwqLoraLinear",
    "EetqLoraLinear",
    "LoraParallelLinear",
    "MultiheadAttention",
    "ParamWrapper",
    "TeLinear",
}
"""PEFT's layers that compute their update without asking a variant."""


def test_every_lora_layer_of_peft_is_known_to_ask_the_variant_or_to_bypass_it() -> None:
    classes = peft_lora_classes()
    asking = {name for name in classes if consults_variant(name, "forward", classes)}
    assert classes.keys() - asking - {"LoraLayer"} == BYPASSING
    assert asking >= UPDATES.keys()


def test_gated_layers_ask_the_variant_for_mixed_batches_where_these_are_allowed() -> None:
    classes = peft_lora_classes()
    asking = {n for n in UPDATES if consults_variant(n, "_mixed_batch_forward", classes)}
    assert asking >= MIXING
    assert not asking & {"HqqLoraLinear", "Embedding"}


def test_layers_that_merge_past_the_variant_are_known() -> None:
    classes = peft_lora_classes()
    assert {n for n in UPDATES if not consults_variant(n, "merge", classes)} == {
        "GPTQLoraLinear",  # PEFT cannot merge it
        "TorchaoLoraLinear",  # merged as a plain LoRA, never unmerged
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.support("Quantised bases", item, "refused"))
        for name, item in [
            ("AqlmLoraLinear", "AQLM"),
            ("AwqLoraLinear", "AWQ"),
            ("EetqLoraLinear", "EETQ"),
            ("IncLoraLinear", "Intel Neural Compressor"),
            ("LoraParallelLinear", "Megatron"),
            ("TeLinear", "transformer engine"),
        ]
    ],
)
def test_a_back_end_outside_the_list_is_refused_by_name(name) -> None:
    assert name in peft_lora_classes()
    kind = type(name, (nn.Module, LoraLayer), {})
    with pytest.raises(TypeError, match=rf"'q_proj' became a {name}, a back end that would bypass"):
        routed_layer(kind.__new__(kind), "q_proj")


# -------------------------------------------------------------------- gptqmodel's layers


@pytest.fixture
def packed_linear(monkeypatch) -> type[nn.Module]:
    """A stand-in for gptqmodel's layer, whose wheel has to be compiled: PEFT's own dispatch takes
    it for one. What it shows is the routing, not gptqmodel's kernels."""

    class PackedLinear(nn.Module):
        SUPPORTS_METHODS: ClassVar[list[Any]] = []

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.scales = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7
            self.qweight = (linear.weight.detach() / self.scales).round().to(torch.int8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.qweight * self.scales).T

    layers = ModuleType("gptqmodel.nn_modules.qlinear")
    layers.BaseQuantLinear = PackedLinear
    package, inner = ModuleType("gptqmodel"), ModuleType("gptqmodel.nn_modules")
    for module in (package, inner, layers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for place in ("peft.tuners.lora.gptq", "peft.tuners.lora.awq", "peft.utils.other"):
        monkeypatch.setattr(f"{place}.is_gptqmodel_available", lambda: True)
    return PackedLinear


def packed(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    for layer in model.model.layers:
        layer.self_attn.q_proj = kind(layer.self_attn.q_proj)
    return model


@pytest.mark.support("Quantised bases", "GPTQ (PEFT's layer; kernels untested)", "works")
def test_gptq_layers_are_routed(packed_linear, make_llama, randomise, ids, z, tmp_path) -> None:
    base = packed(make_llama(), packed_linear)
    config = ILoRAConfig(routing_dim=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = randomise(get_peft_model(base, config)).eval()
    layers = lora_layers(model)
    assert {type(layer).__name__ for layer in layers.values()} == {"GPTQLoraLinear"}
    omegas = model.gate_weights(z)
    for layer in layers.values():
        x = torch.randn(3, 7, layer.in_features)
        with model.routing(z), torch.no_grad():
            actual = layer(x)
        updates = [x_i @ delta(layer, w).T for x_i, w in zip(x, omegas, strict=True)]
        torch.testing.assert_close(actual, layer.base_layer(x) + torch.stack(updates))
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    assert sum(p.grad is not None for p in model.parameters()) == 5
    expected = logits(model, ids[:1], routing_embeds=z[:1])
    with pytest.raises(NotImplementedError):  # PEFT's own: it cannot merge into GPTQ
        model.merge_and_unload(routing_embeds=z[:1])
    assert torch.equal(logits(model, ids[:1], routing_embeds=z[:1]), expected)
    with pytest.raises(ValueError, match="a GPTQLoraLinear, and PEFT mixes batches"):
        model(input_ids=ids, routing_embeds=z, adapter_names=["default"] * 3)
    export_lora(model, z[:1], tmp_path)
    plain = PeftModel.from_pretrained(packed(make_llama(), packed_linear), tmp_path).eval()
    torch.testing.assert_close(logits(plain, ids[:1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.support("Quantised bases", "AWQ", "refused")
def test_gptqmodels_awq_layers_are_refused(packed_linear, make_llama) -> None:
    packed_linear.SUPPORTS_METHODS = [SimpleNamespace(value="awq")]
    base = packed(make_llama(), packed_linear)
    with pytest.raises(TypeError, match="became a AwqLoraLinear, a back end that would bypass"):
        get_peft_model(base, ILoRAConfig(routing_dim=8, target_modules=["q_proj"]))
    assert not lora_layers(base)
