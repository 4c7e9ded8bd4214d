"""The keys of a saved adapter.

On disk LoRA's names become ours (`lora_A` -> `ilora_A`), so that a loader that does not know the
method, vLLM's for one, refuses the file instead of serving the experts without their gate.
"""

import re
from collections.abc import Iterable

GATES = "ilora_gate"
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


def lora_key(key: str) -> str:
    """The plain LoRA key of a saved one: `...ilora_A.weight` -> `...lora_A.weight`."""
    return re.sub(r"\.ilora_((embedding_)?[AB])(\.|$)", r".lora_\1\3", key)


def check_loaded_keys(expected: Iterable[str], found: Iterable[str]) -> None:
    """Refuse a file that does not hold the whole adapter.

    Args:
        expected: Saved keys that the model's adapter has.
        found: Keys of the file.

    Raises:
        ValueError: Keys are missing, or the file is a plain LoRA.
    """
    wanted, keys = set(expected), set(found)
    missing = sorted(wanted - keys)
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
        "model, or its ILoRAConfig has changed since (gate, gate_scope, target_modules)"
    )
