"""Starting an adapter from a trained plain LoRA: `ILoRAConfig.init_from`.

A and B are taken over as they are, coordinate by coordinate, so that expert k starts with the k-th
part of the LoRA's rank. A gate whose head is zero makes every instance that LoRA at first: a form
multiplies by one or adds zero, and a softmax weighs its K experts by 1 / K each, which its scaling
makes up for. Whatever would make a difference at the start is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from peft_ilora.config import NAME, REFUSED, ILoRAConfig
from peft_ilora.layers.adapters import AdaptedLayer
from peft_ilora.layers.tying import is_tied
from peft_ilora.model.files import check_weights
from peft_ilora.model.ilora import ILoRAModel
from peft_ilora.saving import GATES, own_key

_PREFIX = "base_model.model."
_OF_A_LAYER = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_(embedding_)?[AB](\.weight)?")
_TAKEN_OVER = {"eva_config"}
"""Options that iLoRA has no use for and that leave nothing behind but A and B."""
_STARTS_AT_ZERO = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights alone."""
_EQUAL = (
    "use_rslora",
    "layer_replication",
    "bias",
    "trainable_token_indices",
)
"""Options that must be equal, so far as the file does not tell. `fan_in_fan_out` is none: PEFT sets
it by the layer's class, in the configuration too, while it makes the layers (GPT-2's Conv1D)."""


@dataclass(frozen=True)
class Start:
    """A trained plain LoRA, as it was saved."""

    folder: Path
    config: LoraConfig
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"init_from={str(self.folder)!r}"


def read_start(config: ILoRAConfig) -> Start:
    """Read the LoRA that an adapter is to start from, before anything is made.

    Raises:
        ValueError: There is none that can be read without running code, or it was made with an
            option that would have to be another one here.
    """
    folder = Path(config.init_from or "")
    if not folder.is_dir():
        raise ValueError(
            f"init_from={str(folder)!r} is no folder: pass the folder of an adapter that "
            "save_pretrained has written, from the Hugging Face Hub by "
            "huggingface_hub.snapshot_download(name)"
        )
    check_weights(folder)
    lora = _lora_config(folder)
    start = Start(folder, lora, load_file(folder / SAFETENSORS_WEIGHTS_NAME))
    for option, reason in REFUSED.items():
        value = getattr(lora, option, None)
        if value and option not in _TAKEN_OVER:
            raise ValueError(
                f"{start.name} was trained with {option}={value!r}, here it is "
                f"{getattr(config, option, None)!r} and can be nothing else: {reason}"
            )
    if not any(lora.init_lora_weights == init for init in _STARTS_AT_ZERO):
        raise ValueError(
            f"{start.name} was made with init_lora_weights={lora.init_lora_weights!r}, which "
            f"changes the base weights, while init_lora_weights={config.init_lora_weights!r} here "
            "leaves them alone: save it as a plain LoRA first, by PEFT's save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=...)"
        )
    for option in _EQUAL:
        _check_equal(start, option, getattr(lora, option), getattr(config, option))
    return start


def take_over(start: Start, model: PeftModel, adapter_name: str) -> None:
    """Give a new adapter the matrices of a LoRA.

    Args:
        start: The LoRA.
        model: The model with the adapter.
        adapter_name: The adapter's name.

    Raises:
        ValueError: The LoRA has other layers, ranks or scalings than the adapter starts with, or
            tensors that the adapter has no place for; no value has been changed.
    """
    tuner = model.base_model
    assert isinstance(tuner, ILoRAModel)
    config, layers = tuner.adapters.config(adapter_name), tuner.adapters.layers(adapter_name)
    _check_layers(start, config, {layer.name for layer in layers})
    modules = [set(one.modules_to_save or ()) for one in (start.config, config)]
    _check_equal(start, "modules_to_save", *map(sorted, modules))
    own = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError(
            f"{start.name} gives the adapter values, but the base model is on the meta device, "
            "where tensors have none: load the model first"
        )
    found = dict(start.tensors)
    for layer in layers:
        _check_layer(start, config, layer)
        if is_tied(layer.layer, adapter_name):
            _drop_tied(start, found, layer, layers)
    named = {own_key(key): tensor for key, tensor in found.items()}
    _drop_base_weights(start, named, own, model.state_dict())
    missing = sorted(key for key in own if f"{GATES}." not in key and key not in named)
    if missing:
        raise ValueError(
            f"{start.name} is incomplete: {len(missing)} tensors are missing, the first is "
            f"{missing[0]!r} (here `ilora_` stands for `lora_`). Save the adapter again"
        )
    set_peft_model_state_dict(model, own | named, adapter_name=adapter_name)


def _lora_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"init_from={str(folder)!r} has no {CONFIG_NAME} that can be read ({error}): pass the "
            "folder of an adapter that save_pretrained has written"
        ) from error
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind == NAME:
        raise ValueError(
            f"init_from={str(folder)!r} is an iLoRA adapter already: load it with "
            "PeftModel.from_pretrained(model, folder), or export an instance of it first"
        )
    if kind != "LORA":
        raise ValueError(
            f"init_from={str(folder)!r} has peft_type={kind!r} in its {CONFIG_NAME}: only a plain "
            "LoRA, 'LORA', can be started from"
        )
    known = {spec.name for spec in fields(LoraConfig) if spec.init}
    unknown = {name: value for name, value in values.items() if name not in known and value}
    if unknown:
        raise ValueError(
            f"init_from={str(folder)!r} was trained with options that this version of PEFT does "
            f"not know: {unknown}. Upgrade peft, if this package knows the newer one"
        )
    # Read for what it says: LoraConfig itself would warn of settings, and complete them.
    lora = LoraConfig()
    for name, value in values.items():
        if name in known:
            setattr(lora, name, value)
    return lora


def _check_equal(start: Start, option: str, theirs: object, ours: object) -> None:
    if json.dumps(theirs or None) != json.dumps(ours or None):
        raise ValueError(
            f"{start.name} was trained with {option}={theirs!r}, but here {option}={ours!r}: "
            f"the two must be equal"
        )


def _check_layers(start: Start, config: ILoRAConfig, ours: set[str]) -> None:
    matches = (_OF_A_LAYER.fullmatch(key) for key in start.tensors)
    theirs = {match[1] for match in matches if match is not None}
    if theirs == ours:
        return
    only = sorted(theirs - ours) or sorted(ours - theirs)
    where = "there" if theirs - ours else "here"
    raise ValueError(
        f"{start.name} adapts {len(theirs)} layers (target_modules="
        f"{_shown(start.config.target_modules)}), but here {len(ours)} are adapted "
        f"(target_modules={_shown(config.target_modules)}): {only[0]!r} is adapted only {where}. "
        "Let target_modules, exclude_modules and layers_to_transform name the same layers"
    )


def _check_layer(start: Start, config: ILoRAConfig, layer: AdaptedLayer) -> None:
    """Compare rank and scaling of a layer."""
    lora, name = start.config, layer.name
    key = f"{_PREFIX}{name}.lora_"
    a = start.tensors.get(f"{key}A.weight", start.tensors.get(f"{key}embedding_A"))
    if a is None:
        return  # the file is incomplete, of which is told later
    rank, own = a.shape[0], layer.layer.r[layer.adapter]
    if rank != own:
        raise ValueError(
            f"{start.name} has rank {rank} at {name}, but here it is {own} (num_experts * r = "
            f"{config.num_experts} * {own / config.num_experts:g}): choose num_experts and r, or "
            f"rank_pattern, whose product is {rank}"
        )
    alpha = _of_layer(lora.alpha_pattern, name, lora.lora_alpha)
    theirs = alpha / (math.sqrt(rank) if lora.use_rslora else rank)
    ours = layer.layer.scaling[layer.adapter]
    if config.gate_form == "softmax":
        ours /= config.num_experts  # a zero gate weighs each expert by one K-th
    if not math.isclose(theirs, ours, rel_tol=1e-9):
        given = _of_layer(config.alpha_pattern, name, config.lora_alpha)
        raise ValueError(
            f"{start.name} scales its update at {name} by {theirs:g} (lora_alpha={alpha:g}), but "
            f"here the adapter starts with {ours:g} (lora_alpha={given:g}): set lora_alpha, or "
            f"alpha_pattern, to {given * theirs / ours:.12g}"
        )


def _of_layer(pattern: Mapping[str, float] | None, name: str, otherwise: float) -> float:
    """Return a layer's value, as PEFT looks it up."""
    pattern = pattern or {}
    return pattern.get(get_pattern_key(list(pattern), name), otherwise)


def _drop_tied(
    start: Start, found: dict[str, Tensor], layer: AdaptedLayer, layers: list[AdaptedLayer]
) -> None:
    """Leave out the matrices of a layer that reads those of the input embedding, transposed."""
    embedding = next(one for one in layers if one.adapter in one.layer.lora_embedding_A)
    for mine, other in (("A", "B"), ("B", "A")):
        own = found.pop(f"{_PREFIX}{layer.name}.lora_{mine}.weight", None)
        tied = found.get(f"{_PREFIX}{embedding.name}.lora_embedding_{other}")
        if own is not None and tied is not None and not torch.equal(own, tied.t()):
            raise ValueError(
                f"{start.name} has an adapter of its own at {layer.name} (ensure_weight_tying="
                f"{start.config.ensure_weight_tying}), but here it is that of {embedding.name} "
                "(ensure_weight_tying=True): leave ensure_weight_tying at its default"
            )


def _drop_base_weights(
    start: Start,
    named: dict[str, Tensor],
    own: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
) -> None:
    """Leave out what the base model has already, such as the embeddings that PEFT saves along."""
    for key in [key for key in named if key not in own]:
        tensor, base = named.pop(key), model.get(key)
        if base is None or base.shape != tensor.shape or not torch.equal(base.to(tensor), tensor):
            raise ValueError(
                f"{start.name} holds {key!r} of shape {tuple(tensor.shape)}, which is neither its "
                "A nor its B, and which this model does not have: start from the base model that "
                "it was trained with, its embeddings resized in the same way"
            )


def _shown(target_modules: Any) -> Any:
    return sorted(target_modules) if isinstance(target_modules, (set, list)) else target_modules
