"""Options of PEFT's configurations that an arm may not set, or not to any value.

PEFT takes nearly every value, stumbles over some when it wraps the model, and passes over others
in silence. What wrapping reveals is found by `preflight`; the rest is refused here.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft import PeftConfig

BIASES = ("none", "all", "lora_only")
"""Values of PEFT's `bias`."""
STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora")
"""Values of `init_lora_weights`. `pissa_niter_N` changes the base by a random estimate, which is
another one when the adapter is loaded; `eva`, `corda`, `loftq` and `lora_ga` need a preparation
with data, without which PEFT starts from something else."""
UNSUPPORTED = {
    **dict.fromkeys(
        ("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
        "it prepares a start with data, which no stage does",
    ),
    "arrow_config": "it routes among adapters that exist already",
    "init_from": "it starts from an adapter that no stage has trained and no record tells of",
    "alora_invocation_tokens": "it looks for token ids, and hybrid prompts are embeddings",
    "layer_replication": "a saved adapter is not loaded as it was trained",
    "target_parameters": "it adapts parameters of mixtures of experts, which no recipe has tried",
    "monteclora_config": "its update is drawn at random, in evaluation too",
    **dict.fromkeys(("megatron_config", "megatron_core"), "no recipe trains under Megatron"),
    **dict.fromkeys(("use_qalora", "qalora_group_size"), "it is for quantised weights"),
}
"""Options that would be ignored, or give other results when the adapter is loaded, and why."""


def check_options(owner: str, peft: type[PeftConfig], options: Mapping[str, Any]) -> None:
    """Refuse values that PEFT takes, and stumbles over or ignores later.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        peft: The class of the configuration.
        options: The arm's own options.

    Raises:
        ValueError: An option is not supported, or a value is impossible.
    """
    kinds = {spec.name: spec.type for spec in fields(peft)}
    for name, value in options.items():
        if name in UNSUPPORTED and value:
            raise ValueError(f"{owner}: {name} cannot be used ({UNSUPPORTED[name]}): leave it out")
        if name in UNSUPPORTED and value is not None and value is not False:
            raise ValueError(f"{owner}: {name}={value!r} cannot be used: leave it out")
        if kinds.get(name) in (bool, "bool") and not isinstance(value, bool):
            raise ValueError(f"{owner}: {name}={value!r} must be true or false")
    start = options.get("init_lora_weights", True)
    if not any(start is one or (isinstance(start, str) and start == one) for one in STARTS):
        known = ", ".join(str(one).lower() for one in STARTS)
        raise ValueError(f"{owner}: init_lora_weights={start!r} must be one of {known}")
    if options.get("bias", "none") not in BIASES:
        raise ValueError(f"{owner}: bias={options['bias']!r} must be one of {', '.join(BIASES)}")
    for name in ("rank_pattern", "alpha_pattern"):
        values = options.get(name) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{owner}: {name}={values!r} must map names of modules to values")
        for module, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{owner}: {name}[{module!r}]={value!r} must be positive")
    _check_lists_of_names(owner, options)


def _check_lists_of_names(owner: str, options: Mapping[str, Any]) -> None:
    for name in ("modules_to_save", "exclude_modules"):
        values = options.get(name)
        if name == "exclude_modules" and isinstance(values, str):
            continue  # a regular expression
        given = [] if values is None else values
        if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
            raise ValueError(f"{owner}: {name}={values!r} must be a list of names of modules")
    layers = options.get("layers_to_transform")
    given = [] if layers is None else [layers] if isinstance(layers, int) else layers
    if not isinstance(given, list | tuple) or not all(type(one) is int for one in given):
        raise ValueError(f"{owner}: layers_to_transform={layers!r} must be numbers of layers")
