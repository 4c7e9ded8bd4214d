"""Checks of a target before anything is replaced: which modules the gated update covers."""

import warnings

from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from peft_ilora.config import ILoRAConfig

_SEQUENCE_FIRST = frozenset({"fsmt", "led", "longformer", "xlnet"})
"""Models of transformers whose layers see [length, batch, features]."""
_READ_PAST = {
    "bamba": {"out_proj"},
    "falcon_h1": {"out_proj"},
    "falcon_mamba": {"x_proj", "dt_proj", "out_proj"},
    "jamba": {"dt_proj"},
    "mamba": {"x_proj", "dt_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "nemotron_h": {"out_proj"},
    "wavlm": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "zamba2": {"out_proj"},
}
"""Layers whose weight these models read without calling the layer, always or in a fused kernel."""
_HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_HEADS = {"classifier", "score", "qa_outputs"}
"""Names of heads that PEFT adds to `modules_to_save` for these tasks, whether there are any."""


def check_in_memory(model: nn.Module) -> None:
    """Refuse a base model that is partly on the disk.

    Raises:
        ValueError: A new adapter would have no values there, and a saved one would not be found.
    """
    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise ValueError(
            "the base model is partly offloaded to the disk, where a new adapter would have no "
            "values: load the model into memory, add the adapter, then call "
            "accelerate.dispatch_model on the base model"
        )


def warn_of_unknown_names(model: nn.Module, config: LoraConfig) -> None:
    """Name the entries of lists that no module has, of which PEFT says nothing beside others."""
    names = [name.removesuffix(".base_layer") for name, _ in model.named_modules()]
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        listed = getattr(config, option)
        if isinstance(listed, str) or not listed:
            continue
        added = _HEADS if option == "modules_to_save" and config.task_type in _HEADED else set()
        asked = set(listed) - added
        unknown = {one for one in asked if not any(f".{n}".endswith(f".{one}") for n in names)}
        if unknown and (len(unknown) < len(listed) or option == "modules_to_save"):
            warnings.warn(
                f"{option}: no module of this {type(model).__name__} is called {sorted(unknown)}, "
                f"so of {sorted(listed)} these have no effect",
                stacklevel=2,
            )
    indices = config.layers_to_transform
    numbers = {part for name in names for part in name.split(".")}
    absent = [i for i in indices if str(i) not in numbers] if isinstance(indices, list) else []
    if absent:
        warnings.warn(
            f"layers_to_transform: this {type(model).__name__} has no layers {absent}, so of "
            f"{indices} these have no effect",
            stacklevel=2,
        )


def check_target(name: str, model: nn.Module, config: ILoRAConfig) -> None:
    """Refuse a target that the gated update does not cover, before anything is replaced.

    Args:
        name: Name of the targeted module.
        model: The base model.
        config: The adapter's configuration.

    Raises:
        TypeError: A kind of layer that cannot be routed.
        ValueError: A layer whose input is no batch of instances, or whose weight is read past the
            layer; a convolution whose groups do not divide the ranks, or that a form cannot cover.
    """
    module = model.get_submodule(name)
    if isinstance(module, LoraLayer):
        module = module.get_base_layer()
    if isinstance(module, nn.MultiheadAttention):
        raise TypeError(
            f"target module {name!r} is a torch MultiheadAttention, for which LoRA merges its "
            "weights in every forward, one weight for the whole batch: take it out of "
            "target_modules, or use an attention made of linear layers"
        )
    linear = not isinstance(module, (nn.Embedding, nn.modules.conv._ConvNd))
    if config.gate_input == "token" and not linear:
        raise TypeError(
            f"target module {name!r} is a {type(module).__name__}, whose input holds no hidden "
            "state of a token; with gate_input='token' target linear layers only"
        )
    if isinstance(module, nn.modules.conv._ConvNd):
        _check_groups(name, module, config)
    _check_surroundings(name, model, config)


def _check_groups(name: str, module: nn.modules.conv._ConvNd, config: ILoRAConfig) -> None:
    ranks = [*(config.expert_ranks or [config.r]), *(config.rank_pattern or {}).values()]
    divided = "the rank of each expert"
    if config.gate_form != "softmax":
        ranks, divided = [config.num_experts * rank for rank in ranks], "the total rank"
    if any(rank % module.groups for rank in ranks):
        raise ValueError(
            f"target module {name!r} is a convolution of groups={module.groups}, which must divide "
            f"{divided}, but these are {sorted(set(ranks))}: choose a multiple or "
            "take the module out of target_modules"
        )
    if config.gate_form == "square" and module.groups > 1:
        raise ValueError(
            f"target module {name!r} is a convolution of groups={module.groups}, whose B reads a "
            "group's coordinates only, while gate_form='square' mixes all of them: use "
            "gate_form='scale', or take the module out of target_modules"
        )


def _check_surroundings(name: str, model: nn.Module, config: ILoRAConfig) -> None:
    parts = name.split(".")
    by_row = config.gate_input != "token"
    if "experts" in parts and by_row:
        raise ValueError(
            f"target module {name!r} lies in a mixture of experts: it sees gathered tokens, not a "
            "batch of instances. Add exclude_modules=r'.*\\.experts\\..*', target attention only, "
            "or route tokens (gate_input='token')"
        )
    for model_type in _surrounding_types(parts, model):
        if model_type in _SEQUENCE_FIRST and by_row:
            raise ValueError(
                f"target module {name!r} lies in a {model_type} model, whose layers see the "
                "sequence before the batch, so a row of their input is no instance: use a "
                "batch-first model, or route tokens (gate_input='token')"
            )
        if parts[-1] in _READ_PAST.get(model_type, ()):
            raise ValueError(
                f"target module {name!r} lies in a {model_type} model, which reads its weight past "
                "the layer, so the adapter would do nothing: take it out of target_modules, or add "
                f"exclude_modules={sorted(_READ_PAST[model_type])}"
            )
    parent = model.get_submodule(".".join(parts[:-1]))
    if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        raise ValueError(
            f"target module {name!r} lies in a torch {type(parent).__name__}, whose fast path "
            "reads weights past the layer, so the adapter would do nothing: take it out of "
            "target_modules"
        )


def _surrounding_types(parts: list[str], model: nn.Module) -> set[str]:
    """Return the `model_type` of every model of transformers that a module lies in."""
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))
    configs = (getattr(module, "config", None) for module in around)
    return {str(getattr(config, "model_type", "")) for config in configs}
