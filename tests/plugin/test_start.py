"""Adapters that start from a trained plain LoRA: equal to it at first, or refused."""

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from peft_ilora import ILoRAConfig

sys.path.insert(0, str(Path(__file__).parent))
from misuses import same, state_of

FORMS = ["softmax", "sigmoid", "scale", "shift", "scale_shift", "square"]
TARGETS = ["q_proj", "v_proj", "down_proj"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EXACT = {"rtol": 0, "atol": 1e-12}
support = pytest.mark.support


def trained(base: nn.Module, folder: Path, **fields: Any) -> PeftModel:
    """A saved LoRA that does something."""
    lora = get_peft_model(base, LoraConfig(**fields)).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in lora.named_parameters():
        if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    lora.save_pretrained(folder)
    return lora


@pytest.fixture
def lora(make_llama, tmp_path) -> Callable[..., PeftModel]:
    """Saves a Llama's LoRA in `tmp_path / "lora"`."""

    def make(**fields: Any) -> PeftModel:
        settings = {"r": 8, "lora_alpha": 12, "target_modules": TARGETS}
        return trained(make_llama(), tmp_path / "lora", **settings | fields)

    return make


@pytest.fixture
def started(make_llama, tmp_path) -> Callable[..., PeftModel]:
    """A Llama with an iLoRA that starts from it."""

    def make(**fields: Any) -> PeftModel:
        settings = {
            "num_experts": 4,
            "r": 2,
            "lora_alpha": 12,
            "routing_dim": 8,
            "target_modules": TARGETS,
            "init_from": tmp_path / "lora",
        }
        return get_peft_model(make_llama(), ILoRAConfig(**settings | fields)).eval()

    return make


@support("Adapter lifecycle", "start from a trained plain LoRA", "works")
@pytest.mark.parametrize("gate", ["linear", "mlp", "trunk"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_instance_is_the_lora_at_first(form, gate, lora, started, ids, z) -> None:
    expected = lora()(input_ids=ids).logits
    model = started(gate_form=form, gate=gate)
    got = model(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"scaling_rank": "total", "lora_alpha": 48}),
        ({"use_rslora": True}, {"use_rslora": True, "lora_alpha": 24}),
        ({"use_rslora": True}, {"use_rslora": True, "gate_form": "scale"}),
        ({}, {"expert_ranks": [4, 2, 1, 1]}),
        ({}, {"num_experts": 1, "r": 8}),
        ({"rank_pattern": {"q_proj": 4}}, {"rank_pattern": {"q_proj": 1}}),
        ({"alpha_pattern": {"q_proj": 4}}, {"alpha_pattern": {"q_proj": 4}}),
        (
            {"rank_pattern": {"v_proj": 12}, "alpha_pattern": {"1.mlp.down_proj": 3}},
            {
                "rank_pattern": {"v_proj": 3},
                "alpha_pattern": {"1.mlp.down_proj": 3},
                "gate": "trunk",
                "gate_form": "scale_shift",
            },
        ),
        ({}, {"gate_scope": "per_module", "gate_form": "sigmoid"}),
        ({}, {"gate_input": "token", "gate_scope": "per_module", "temperature": 0.5}),
        ({"layer_replication": [(0, 2), (1, 2)]}, {"layer_replication": [(0, 2), (1, 2)]}),
        ({"init_lora_weights": "gaussian"}, {"init_lora_weights": False}),
        ({"trainable_token_indices": [3, 4]}, {"trainable_token_indices": [3, 4]}),
        ({"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
        ({"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ({"target_modules": r".*\.0\..*q_proj"}, {"layers_to_transform": [0]}),
    ],
    ids=str,
)
@torch.no_grad()
def test_settings_that_agree_give_equal_outputs(theirs, ours, lora, started, ids, z) -> None:
    if "layers_to_transform" in ours:
        ours = ours | {"target_modules": ["q_proj"]}
    expected = lora(**theirs)(input_ids=ids).logits
    routing = {} if ours.get("gate_input") == "token" else {"routing_embeds": z}
    got = started(**ours)(input_ids=ids, **routing).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_code_of_the_training_page_runs(lora, make_llama, ids, tmp_path, monkeypatch) -> None:
    targets = ["q_proj", "v_proj"]
    expected = lora(r=16, lora_alpha=32, target_modules=targets)(input_ids=ids).logits
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*init_from=[^`]*)```", page)
    monkeypatch.chdir(tmp_path)
    names = {"llm": make_llama(), "get_peft_model": get_peft_model, "ILoRAConfig": ILoRAConfig}
    exec(code, names)
    got = names["model"].eval()(input_ids=ids, routing_embeds=torch.randn(3, 64)).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


KINDS = ["Linear", "Conv1D", "Conv2d", "Conv2d, groups", "Embedding"]


class One(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in KINDS for form in FORMS if (kind, form) != (KINDS[3], "square")],
)
@torch.no_grad()
def test_layers_of_every_kind_start_as_the_lora_in_float64(kind, form, tmp_path) -> None:
    torch.manual_seed(0)
    layer, x = {
        "Linear": (nn.Linear(4, 6), torch.randn(3, 5, 4).double()),
        "Conv1D": (Conv1D(6, 4), torch.randn(3, 5, 4).double()),
        "Conv2d": (nn.Conv2d(4, 6, 3), torch.randn(3, 4, 5, 5).double()),
        "Conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5).double()),
        "Embedding": (nn.Embedding(9, 6), torch.randint(0, 9, (3, 5))),
    }[kind]
    base, transposed = One(layer).double(), kind == "Conv1D"
    fields = {"target_modules": ["layer"], "lora_alpha": 5, "fan_in_fan_out": transposed}
    expected = trained(copy.deepcopy(base), tmp_path, r=8, **fields)(x)
    config = ILoRAConfig(
        num_experts=4, r=2, routing_dim=3, gate_form=form, init_from=str(tmp_path), **fields
    )
    model = get_peft_model(base, config).eval()
    got = model(x, routing_embeds=torch.randn(3, 3).double())
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("layer", [Conv1D(4, 4), nn.Linear(4, 4)], ids=["Conv1D", "Linear"])
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
@torch.no_grad()
def test_fan_in_fan_out_is_what_the_layer_says_and_makes_no_difference(
    theirs, ours, layer, tmp_path
) -> None:
    """PEFT sets it while it makes the layers: GPT-2's saved configurations say True."""
    base, x, fields = One(layer), torch.randn(3, 5, 4), {"target_modules": ["layer"]}
    lora = trained(copy.deepcopy(base), tmp_path, fan_in_fan_out=theirs, **fields)
    config = ILoRAConfig(
        num_experts=4, r=2, lora_alpha=8, init_from=tmp_path, fan_in_fan_out=ours, **fields
    )
    model, z = get_peft_model(copy.deepcopy(base), config).eval(), torch.randn(3, 64)
    torch.testing.assert_close(model(x, routing_embeds=z), lora(x))
    merged = model.merge_and_unload(routing_embeds=z[:1])
    torch.testing.assert_close(merged(x), lora(x))


@torch.no_grad()
def test_experts_own_neighbouring_coordinates_of_the_lora(lora, started, tmp_path) -> None:
    lora()
    model = started()
    key = "model.layers.0.self_attn.q_proj"
    theirs = load_file(tmp_path / "lora" / WEIGHTS)
    layer = model.get_submodule(f"base_model.model.{key}")
    assert torch.equal(
        layer.lora_A["default"].weight, theirs[f"base_model.model.{key}.lora_A.weight"]
    )
    b = layer.lora_B["default"].weight
    assert torch.equal(b, theirs[f"base_model.model.{key}.lora_B.weight"])
    second = torch.tensor([0.0, 1.0, 0.0, 0.0])
    update = layer.lora_variant["default"]
    folded = update.gate.form.fold(b, second, update.coordinates)
    assert torch.equal(folded[:, 2:4], b[:, 2:4]) and folded.count_nonzero() == b[:, 2:4].numel()


def test_the_gate_leaves_its_zero_start_in_training(lora, started, ids, z) -> None:
    lora()
    model = started().train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
        optimiser.step()
    assert model.base_model.ilora_gate["default"].project.weight.abs().max() > 0
    assert model.gate_weights(z).std(dim=0).max() > 0


@torch.no_grad()
def test_a_second_adapter_starts_from_it_too(lora, llama, ids, z, tmp_path) -> None:
    expected = lora()(input_ids=ids).logits
    first = llama(input_ids=ids, routing_embeds=z).logits
    config = ILoRAConfig(
        num_experts=2,
        r=4,
        lora_alpha=12,
        routing_dim=8,
        target_modules=TARGETS,
        init_from=str(tmp_path / "lora"),
        gate_form="scale",
    )
    llama.add_adapter("second", config)
    llama.set_adapter("second")
    got = llama(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    llama.set_adapter("default")
    assert torch.equal(llama(input_ids=ids, routing_embeds=z).logits, first)


@torch.no_grad()
def test_the_folder_is_read_once_and_neither_saved_nor_read_again(
    lora, started, make_llama, ids, z, tmp_path
) -> None:
    expected = lora()(input_ids=ids).logits
    model = started()
    config = model.peft_config["default"]
    shutil.rmtree(tmp_path / "lora")
    model.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / CONFIG).read_text()
    assert "init_from" not in text and json.loads(text)["gate_init"] == "zeros"
    assert "init_from" not in config.to_dict()
    assert not hasattr(config.to_lora_config(), "init_from")
    assert copy.deepcopy(config).init_from == config.init_from == tmp_path / "lora"
    for given in ({}, {"config": config}):
        again = PeftModel.from_pretrained(make_llama(), tmp_path / "saved", **given)
        got = again.eval()(input_ids=ids, routing_embeds=z).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert again.peft_config["default"].init_from is None
    assert config.init_from is not None
    model.load_adapter(tmp_path / "saved", "second")
    assert model.peft_config["second"].init_from is None
    with pytest.raises(ValueError, match=r"init_from='.*lora' is no folder"):
        get_peft_model(make_llama(), config)
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(json.loads(text) | {"init_from": "x"}))
    with pytest.raises(ValueError, match="init_from='x', which is read when an adapter is made"):
        PeftModel.from_pretrained(make_llama(), tmp_path / "saved")


@torch.no_grad()
def test_a_configuration_serves_several_models(lora, started, make_llama, ids, z) -> None:
    expected = lora()(input_ids=ids).logits
    config = started().peft_config["default"]
    got = get_peft_model(make_llama(), config).eval()(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_half_precision_base_gets_the_values_unrounded(lora, make_llama, tmp_path) -> None:
    lora()
    theirs = load_file(tmp_path / "lora" / WEIGHTS)
    config = ILoRAConfig(
        r=2, lora_alpha=12, target_modules=TARGETS, init_from=str(tmp_path / "lora")
    )
    model = get_peft_model(make_llama().to(torch.bfloat16), config)
    own = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    assert len(own) == len(theirs)
    for key, value in own.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[key.replace(".default", "")])


def classifier() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=60,
        pad_token_id=0,
        num_labels=3,
    )
    return LlamaForSequenceClassification(config).eval()


@torch.no_grad()
def test_a_classifiers_trained_head_comes_along(ids, z, tmp_path) -> None:
    fields = {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    expected = trained(classifier(), tmp_path, r=16, **fields)(input_ids=ids).logits
    config = ILoRAConfig(routing_dim=8, lora_alpha=8, init_from=str(tmp_path), **fields)
    model = get_peft_model(classifier(), config).eval()
    got = model(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_tied_embeddings_start_as_the_lora(tied, ids, z, make_llama, tmp_path) -> None:
    fields = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": tied}
    base = make_llama(tie_word_embeddings=True)
    lora = get_peft_model(base, LoraConfig(r=8, **fields)).eval()
    embedding, head = lora.get_base_model().model.embed_tokens, lora.get_base_model().lm_head
    embedding.lora_embedding_A["default"].data.normal_(std=0.1)
    if not tied:
        head.lora_B["default"].weight.data.normal_(std=0.1)
    expected = lora(input_ids=ids).logits
    lora.save_pretrained(tmp_path)
    config = ILoRAConfig(r=2, lora_alpha=8, routing_dim=8, init_from=str(tmp_path), **fields)
    model = get_peft_model(make_llama(tie_word_embeddings=True), config).eval()
    got = model(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@torch.no_grad()
def test_embeddings_that_are_saved_along_must_be_equal(lora, started, ids, z, tmp_path) -> None:
    targets = ["embed_tokens"]
    expected = lora(target_modules=targets)(input_ids=ids).logits
    path = tmp_path / "lora" / WEIGHTS
    saved = load_file(path)
    extra = {key for key in saved if "lora_" not in key}
    assert extra == {"base_model.model.model.embed_tokens.base_layer.weight"}
    got = started(target_modules=targets)(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    (key,) = extra
    for changed in (saved[key] + 1, torch.cat([saved[key], saved[key][:1]])):
        save_file(saved | {key: changed}, path)
        with pytest.raises(ValueError, match="holds .*embed_tokens.base_layer.weight.*resized"):
            started(target_modules=targets)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = before.keys() | now.keys()
    return [name for name in names if not same(before.get(name), now.get(name))]


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CHANGED = {
    "rank": ({}, {"r": 4}, r"has rank 8 at .*q_proj, but here it is 16 .*4 \* 4\).* is 8"),
    "rank that no product makes": ({"r": 6}, {}, "has rank 6 at .*, but here it is 8"),
    "one rank": (
        {"rank_pattern": {"v_proj": 4}},
        {},
        r"has rank 4 at model.layers.0.self_attn.v_proj, but here it is 8",
    ),
    "alpha": ({"lora_alpha": 16}, {}, r"by 2 \(lora_alpha=16\).*with 1.5 .*alpha_pattern, to 16"),
    "alpha of a softmax under rsLoRA": (
        {"use_rslora": True},
        {"use_rslora": True},
        r"by 4.24264 \(lora_alpha=12\).*with 2.12132 \(lora_alpha=12\).* to 24",
    ),
    "one alpha": (
        {"alpha_pattern": {"v_proj": 4}},
        {},
        r"at model.layers.0.self_attn.v_proj by 0.5 .*with 1.5 .* to 4",
    ),
    "rsLoRA": ({}, {"use_rslora": True}, "use_rslora=False, but here use_rslora=True"),
    "bias": ({}, {"bias": "lora_only"}, "bias='none', but here bias='lora_only'"),
    "replication": (
        {},
        {"layer_replication": [(0, 2), (1, 2)]},
        r"layer_replication=None, but here layer_replication=\[\(0, 2\), \(1, 2\)\]",
    ),
    "tokens": (
        {},
        {"trainable_token_indices": [3]},
        r"trainable_token_indices=None, but here trainable_token_indices=\[3\]",
    ),
    "modules": (
        {},
        {"modules_to_save": ["lm_head"]},
        r"modules_to_save=\[\], but here modules_to_save=\['lm_head'\]",
    ),
    "their modules": (
        {"modules_to_save": ["lm_head"]},
        {},
        r"modules_to_save=\['lm_head'\], but here modules_to_save=\[\]",
    ),
    "layers that it has not": (
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj"]},
        r"adapts 2 layers .*\['q_proj'\].*here 4 .*\['q_proj', 'v_proj'\].*only here",
    ),
    "layers that are not targeted": (
        {},
        {"exclude_modules": ["down_proj"]},
        r"adapts 6 layers .*here 4 are .*: 'model.layers.0.mlp.down_proj' is adapted only there",
    ),
    "DoRA": ({"use_dora": True}, {}, "trained with use_dora=True, here it is False"),
    "a bias on B": ({"lora_bias": True}, {}, "trained with lora_bias=True, here it is False"),
    "PiSSA": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa', which changes"),
}


@support("Adapter lifecycle", "start from a LoRA that differs", "refused")
@pytest.mark.filterwarnings("ignore:.*lora_bias=True:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape:UserWarning")
@pytest.mark.parametrize("name", CHANGED)
def test_a_lora_that_would_make_a_difference_is_refused_and_nothing_changed(
    name, lora, make_llama, tmp_path
) -> None:
    theirs, ours, message = CHANGED[name]
    lora(**theirs)
    fields = {"r": 2, "lora_alpha": 12, "target_modules": TARGETS, "init_from": tmp_path / "lora"}
    base, config = make_llama(), ILoRAConfig(**fields | ours)
    before, fields_before = state_of(base), config.to_dict()
    with pytest.raises(ValueError, match=f"init_from='.*lora'.*{message}"):
        get_peft_model(base, config)
    assert differences(before, state_of(base)) == []
    changed = differences(fields_before, config.to_dict())
    assert set(changed) <= {"base_model_name_or_path"}
    model = get_peft_model(base, ILoRAConfig(target_modules=TARGETS))  # it takes another
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        model.add_adapter("second", config)
    assert differences(before, state_of(model)) == []


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def without(text: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        save_file({k: v for k, v in found.items() if text not in k}, folder / WEIGHTS)

    return drop


def with_values(value: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        save_file({k: value(v) for k, v in found.items()}, folder / WEIGHTS)

    return change


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "is no folder: pass .*snapshot_download"),
    "only a pickle": (pickled, r"adapter_model\.bin, a pickle.*never loaded.*save_pretrained"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "there is no adapter_model"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "has no adapter_config.json"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "has no adapter_config.json"),
    "an iLoRA": (lambda folder: rewrite(folder, peft_type="ILORA"), "is an iLoRA adapter already"),
    "a LoHa": (lambda folder: rewrite(folder, peft_type="LOHA"), "has peft_type='LOHA'"),
    "a newer option": (lambda folder: rewrite(folder, use_x=1), r"does not know: \{'use_x': 1\}"),
    "a missing B": (without("0.self_attn.q_proj.lora_B"), "is incomplete: 1 tensors .*q_proj.ilo"),
    "NaN": (with_values(lambda v: v * torch.nan), "holds NaN or infinity"),
    "integers": (with_values(Tensor.int), "has dtype torch.int32"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_folder_that_cannot_be_read_is_refused_and_nothing_changed(
    name, lora, make_llama, tmp_path
) -> None:
    damage, message = DAMAGED[name]
    lora()
    damage(tmp_path / "lora")
    fields = {"r": 2, "lora_alpha": 12, "target_modules": TARGETS, "init_from": tmp_path / "lora"}
    base = make_llama()
    before = state_of(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, ILoRAConfig(**fields))
    assert differences(before, state_of(base)) == []


def test_an_adapter_without_values_cannot_start_from_any(lora, make_llama, tmp_path) -> None:
    lora()
    fields = {"r": 2, "lora_alpha": 12, "target_modules": TARGETS, "init_from": tmp_path / "lora"}
    base = make_llama()
    before = state_of(base)
    with pytest.raises(ValueError, match="init_from=.*low_cpu_mem_usage=True makes it"):
        get_peft_model(base, ILoRAConfig(**fields), low_cpu_mem_usage=True)
    assert differences(before, state_of(base)) == []
    with pytest.raises(ValueError, match="init_from=.*base model is on the meta device"):
        get_peft_model(make_llama().to("meta"), ILoRAConfig(**fields))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_two_adapters_of_tied_layers_do_not_become_one(make_llama, tmp_path) -> None:
    fields = {"target_modules": ["embed_tokens", "lm_head"]}
    trained(make_llama(tie_word_embeddings=True), tmp_path, r=8, **fields)
    config = ILoRAConfig(
        r=2, lora_alpha=8, init_from=str(tmp_path), ensure_weight_tying=True, **fields
    )
    with pytest.raises(ValueError, match="an adapter of its own at lm_head .*_tying=False"):
        get_peft_model(make_llama(tie_word_embeddings=True), config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_from": 3}, "init_from=3 must be a folder's path"),
        ({"init_from": ""}, "init_from='' must be a folder's path"),
        ({"init_from": "lora", "gate": "hard"}, "gate='hard' takes one expert.*'lora'"),
        ({"init_from": "lora", "top_k": 2}, "top_k=2 leaves experts out.*'lora'"),
    ],
)
def test_what_cannot_start_as_a_lora_is_refused_in_the_configuration(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        ILoRAConfig(**fields)
