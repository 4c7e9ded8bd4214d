"""The keys of a saved adapter.

On disk LoRA's names become ours (`lora_A` -> `ilora_A`), so that a loader that does not know the
method, vLLM's for one, refuses the file instead of serving the experts without their gate.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

GATES = "ilora_gate"
PREFIX = "ilora_"
"""Prefix of saved keys."""
_LORA_KEY = re.compile(r"\.lora_(embedding_)?(A|B)(\.|$)")


def checkpoint_key(key: str, adapter_name: str) -> str | None:
    """Map a key of the model's state dict to the saved one, for what is the method's own.

    Args:
        key: Such as `...q_proj.lora_A.default.weight`, `...ilora_gate.default.project.weight`.
        adapter_name: Such as `default`.

    Returns:
        Such as `...q_proj.ilora_A.weight`; None for a key that the method does not name.
    """
    head, gate, tail = key.rpartition(f"{GATES}.{adapter_name}.")
    if gate:
        return f"{head}{GATES}.{tail}"
    bare = key.removesuffix(f".{adapter_name}")  # an embedding's matrices are bare parameters
    if bare != key and (match := re.search(r"\.lora_embedding_([AB])$", bare)):
        return f"{bare[: match.start()]}.ilora_embedding_{match[1]}"
    head, adapter, tail = key.rpartition(f".{adapter_name}.")
    if adapter and (match := re.search(r"\.lora_([AB])$", head)):
        return f"{head[: match.start()]}.ilora_{match[1]}.{tail}"
    return None


def is_own_key(key: str) -> bool:
    """Whether a saved key is the method's own."""
    return f".{PREFIX}" in key


def lora_key(key: str) -> str:
    """The plain LoRA key of a saved one: `...ilora_A.weight` -> `...lora_A.weight`."""
    return re.sub(r"\.ilora_((embedding_)?[AB])(\.|$)", r".lora_\1\3", key)


def own_key(key: str) -> str:
    """The saved key of a plain LoRA's: `...lora_A.weight` -> `...ilora_A.weight`."""
    return re.sub(r"\.lora_((embedding_)?[AB])(\.|$)", r".ilora_\1\3", key)


def check_loaded_keys(expected: Iterable[str], found: Iterable[str]) -> None:
    """Refuse a file that does not hold the whole adapter, or more of it than the model has.

    Args:
        expected: Saved keys that the model's adapter has.
        found: Keys of the file.

    Raises:
        ValueError: Keys are missing or left over, or the file is a plain LoRA.
    """
    wanted, keys = set(expected), set(found)
    missing = sorted(wanted - keys)
    left = sorted(key for key in keys - wanted if is_own_key(key))
    if left and not missing:
        raise ValueError(
            f"the adapter's weights hold {len(left)} tensors that this model's adapter has no "
            f"place for, the first is {left[0]!r}: they were made for another base model, or their "
            "ILoRAConfig has changed since (target_modules, exclude_modules, layers_to_transform)"
        )
    if not missing:
        return
    if any(_LORA_KEY.search(key) for key in keys):
        raise ValueError(
            "these weights are a plain LoRA (keys `lora_A`, `lora_B`), not an iLoRA adapter: load "
            "them with LoraConfig, whose adapter_config.json says peft_type LORA"
        )
    raise ValueError(
        f"the adapter's weights are incomplete: {len(missing)} of {len(wanted)} tensors are "
        f"missing, the first is {missing[0]!r}. The file is truncated, was made for another base "
        "model, or its ILoRAConfig has changed since (gate, gate_form, gate_scope, target_modules)"
    )


def check_loaded_tensors(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Refuse tensors that the model's adapter cannot have, before the first is copied.

    Args:
        tensors: Those of a file, by their keys in the model.
        model: The model's.

    Raises:
        ValueError: A tensor has another shape, is no floating point, or holds NaN or infinity.
    """
    for key, tensor in tensors.items():
        place = model.get(key)
        if place is None or ".base_layer." in key or hasattr(place, "device_mesh"):
            continue
        if tensor.shape != place.shape and place.numel():  # an empty place: sharded (ZeRO-3)
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)} in the adapter's weights and "
                f"{tuple(place.shape)} in this model: they were made for another base model, or "
                "their ILoRAConfig has changed since (r, num_experts, gate_form, routing_dim)"
            )
        if place.is_floating_point() and not tensor.is_floating_point():
            raise ValueError(
                f"{key} has dtype {tensor.dtype} in the adapter's weights, where floating point is "
                "expected: save the adapter again"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{key} holds NaN or infinity in the adapter's weights: its training has diverged, "
                "or the file is damaged. Load an earlier checkpoint"
            )
