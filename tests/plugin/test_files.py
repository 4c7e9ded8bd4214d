"""Files of an adapter that cannot be loaded: what is said, and that nothing has changed."""

import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_ilora import ILoRAConfig

sys.path.insert(0, str(Path(__file__).parent))
from misuses import same, state_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Code:
    """A pickle that says so when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def cut(name: str, size: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:size])

    return damage


def written(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Code()))


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Code()))


def torch_saved(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "weights")
    (folder / "weights").replace(folder / WEIGHTS)


def tensors(change: Callable[[dict[str, torch.Tensor]], dict]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = change(load_file(folder / WEIGHTS))
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def first(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Change one tensor, the last that would be copied."""
    return tensors(lambda s: s | {(key := sorted(s)[-1]): value(s[key])})


def fields(**changed: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(found | changed))

    return damage


EXTRA = "base_model.model.model.layers.7.self_attn.q_proj.ilora_A.weight"
WEIGHT_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(WEIGHTS, 0), "no whole safetensors file: it is empty"),
    "cut in the length": (cut(WEIGHTS, 5), "cut off after 5 bytes"),
    "cut in the header": (cut(WEIGHTS, 100), "its header of .* is cut off after 100 bytes"),
    "cut in the data": (cut(WEIGHTS, -100), r"it should have \d+ bytes and has \d+"),
    "too long": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x"),
        r"it should have \d+ bytes and has \d+",
    ),
    "no JSON in the header": (written(WEIGHTS, b"\x05" + bytes(7) + b"{not:"), "cannot be read"),
    "noise": (written(WEIGHTS, bytes(range(64))), "it begins with"),
    "a pickle": (written(WEIGHTS, pickle.dumps(Code())), "it is a pickle.*never loaded"),
    "a zip": (zipped, "it is a pickle.*never loaded"),
    "torch.save": (torch_saved, "it is a pickle.*save_pretrained"),
    "a web page": (written(WEIGHTS, "<!doctype html><html>404</html>"), "it is a web page"),
    "git-lfs": (written(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "only a pickle": (pickled_only, r"adapter_model\.bin, a pickle.*never loaded"),
    "missing": (lambda folder: (folder / WEIGHTS).unlink(), f"there is no {WEIGHTS} in"),
    "a tensor missing": (
        tensors(lambda s: {k: s[k] for k in sorted(s)[1:]}),
        r"incomplete: 1 of \d tensors",
    ),
    "a tensor too many": (tensors(lambda s: s | {EXTRA: torch.ones(2)}), "no place for"),
    "another shape": (first(lambda t: t[:1].clone()), r"has shape .* in the adapter's weights and"),
    "another dtype": (first(torch.Tensor.int), "has dtype torch.int32"),
    "NaN": (first(lambda t: t * torch.nan), "holds NaN or infinity"),
    "a plain LoRA": (
        tensors(lambda s: {k.replace("ilora_", "lora_"): v for k, v in s.items()}),
        "are a plain LoRA",
    ),
}
CONFIG_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(CONFIG, 0), f"{CONFIG} is empty"),
    "cut early": (cut(CONFIG, 20), "is no whole JSON"),
    "cut late": (cut(CONFIG, -3), "is no whole JSON"),
    "a list": (written(CONFIG, "[1, 2]"), "is a list, not an object"),
    "no peft_type": (written(CONFIG, '{"r": 4}'), "without the field 'peft_type'"),
    "a plain LoRA's": (fields(peft_type="LORA"), "says peft_type='LORA' but the weights"),
    "an unknown method": (fields(peft_type="NEWER"), "says peft_type='NEWER' but the weights"),
    "an unknown gate": (fields(gate="sparse"), "gate='sparse' must be one of"),
    "a newer version": (fields(gate_norm="layer"), "gate_norm.*newer"),
    "an impossible value": (fields(temperature=-1), "temperature=-1"),
}
FAULTS = {f"weights: {name}": fault for name, fault in WEIGHT_FAULTS.items()} | {
    f"config: {name}": fault for name, fault in CONFIG_FAULTS.items()
}


@pytest.fixture
def saved(make_adapted, tmp_path) -> Path:
    make_adapted(target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = before.keys() | now.keys()
    return [name for name in names if not same(before.get(name), now.get(name))]


@pytest.mark.support("Adapter lifecycle", "a damaged or foreign file", "refused")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_model_is_as_before_and_takes_another_adapter(
    fault, saved, make_adapted, make_llama, ids, z, tmp_path
) -> None:
    damage, message = FAULTS[fault]
    damage(saved)
    base = make_llama()
    before = state_of(base)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, saved)
    assert differences(before, state_of(base)) == []
    other = make_adapted()
    other.save_pretrained(tmp_path / "right")
    right = PeftModel.from_pretrained(base, tmp_path / "right")
    routed = {"input_ids": ids, "routing_embeds": z}
    assert torch.equal(right(**routed).logits, other(**routed).logits)
    assert type(get_peft_model(right.unload(), LoraConfig()).base_model).__name__ == "LoraModel"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_with_adapters_is_as_before(fault, saved, make_adapted, ids, z) -> None:
    damage, message = FAULTS[fault]
    damage(saved)
    model = make_adapted(target_modules=["q_proj"]).train()
    before = state_of(model)
    names = ["new"] if fault.startswith("config") else ["new", "default"]
    for name in names:
        with pytest.raises(
            ValueError, match=message if name == "new" else f"{message}|no place for"
        ):
            model.load_adapter(saved, name)
        assert differences(before, state_of(model)) == []
    assert list(model.peft_config) == ["default"]
    model(input_ids=ids, routing_embeds=z)


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_a_configuration_that_is_passed_along_changes_nothing(fault, saved, make_llama) -> None:
    config = ILoRAConfig.from_pretrained(saved)
    damage, message = WEIGHT_FAULTS[fault]
    damage(saved)
    base = make_llama()
    before = state_of(base)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, saved, config=config)
    assert differences(before, state_of(base)) == []


MORE: dict[str, dict[str, Any]] = {
    "replicated layers": {"layer_replication": [(0, 2), (1, 2)]},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "trained tokens": {"trainable_token_indices": [3, 4]},
    "gates by layer": {"gate_scope": "per_module"},
    "tied adapters": {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
    "prompt": {"gate_input": "prompt", "routing_dim": 32},
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", MORE)
def test_whatever_an_adapter_has_changed_is_undone(
    kind, low_cpu_mem_usage, make_adapted, make_llama, tmp_path
) -> None:
    make_adapted(**MORE[kind]).save_pretrained(tmp_path)
    first(lambda t: t * torch.nan)(tmp_path)
    base = make_llama()
    base.gradient_checkpointing_enable()
    before = state_of(base) | {"config": base.config.to_dict()}
    with pytest.raises(ValueError, match="holds NaN"):
        PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert differences(before, state_of(base) | {"config": base.config.to_dict()}) == []


def test_a_tensor_of_modules_to_save_that_is_missing_is_named(
    make_adapted, make_llama, tmp_path
) -> None:
    make_adapted(modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    tensors(lambda s: {k: v for k, v in s.items() if "lm_head" not in k})(tmp_path)
    base = make_llama()
    before = state_of(base)
    with pytest.raises(ValueError, match="'base_model.model.lm_head.weight' is missing"):
        PeftModel.from_pretrained(base, tmp_path)
    assert differences(before, state_of(base)) == []


def test_a_failure_of_pefts_own_is_undone_too(saved, make_llama, monkeypatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    base = make_llama()
    before = state_of(base)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("peft.peft_model.load_peft_weights", interrupted)
        PeftModel.from_pretrained(base, saved)
    assert differences(before, state_of(base)) == []
    PeftModel.from_pretrained(base, saved)


PLACES: dict[str, Callable[[Path], Path]] = {
    "no such folder": lambda saved: saved / "nowhere",
    "a file": lambda saved: saved / WEIGHTS,
    "the folder above": lambda saved: saved.parent,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_without_an_adapter_is_named(place, saved, make_adapted, make_llama) -> None:
    path, base, model = PLACES[place](saved), make_llama(), make_adapted()
    states = state_of(base), state_of(model)
    with pytest.raises(ValueError, match=str(path)):
        PeftModel.from_pretrained(base, path)
    with pytest.raises(ValueError, match=str(path)):
        model.load_adapter(path, "new")
    assert differences(states[0], state_of(base)) == []
    assert differences(states[1], state_of(model)) == []


def test_no_pickle_is_written(make_adapted, tmp_path) -> None:
    with pytest.raises(ValueError, match="safe_serialization=False writes a pickle"):
        make_adapted().save_pretrained(tmp_path / "saved", safe_serialization=False)
    assert not (tmp_path / "saved").exists()


def test_a_plain_lora_is_saved_and_loaded_as_ever(make_llama, ids, tmp_path) -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(make_llama(), config).eval()
    expected = model(input_ids=ids).logits
    for safe in (True, False):
        model.save_pretrained(tmp_path / str(safe), safe_serialization=safe)
        again = PeftModel.from_pretrained(make_llama(), tmp_path / str(safe)).eval()
        assert torch.equal(again(input_ids=ids).logits, expected)


def test_a_failed_load_keeps_the_hooks_of_a_dispatched_base(
    make_llama, make_adapted, tmp_path
) -> None:
    make_adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("down_proj", "dwon").replace("_proj", "_porj"))
    base = accelerate.dispatch_model(make_llama(), {"": "cpu"}, force_hooks=True)
    before = {name: dict(vars(module)) for name, module in base.named_modules()}
    with pytest.raises(ValueError, match="Target modules"):
        PeftModel.from_pretrained(base, tmp_path)
    assert "_hf_hook" in vars(base)
    assert before == {name: vars(module) for name, module in base.named_modules()}
