"""One instance as a plain LoRA adapter, which PEFT, vLLM or llama.cpp load without this package."""

import json
import tempfile
from pathlib import Path

from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from peft_ilora.instance.merging import Merging
from peft_ilora.saving import GATES, lora_key

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_NOTHING = ("none", None, [], {})


def export_lora(
    model: PeftModel, routing_embeds: Tensor, folder: str | Path, adapter_name: str | None = None
) -> Path:
    """Write the plain LoRA that an adapter is for one instance.

    Exact: the gate is folded into B, no approximation is made. Its rank is that of all experts
    together. Under `gate_form="shift"` and `"scale_shift"` it has a bias on B (`lora_bias=True`),
    which PEFT loads and vLLM refuses: to be served there an adapter needs another form, such as
    `scale`.

    Args:
        model: A PeftModel with an iLoRA adapter.
        routing_embeds: The instance, [1, routing_dim].
        folder: Created; existing files of an adapter are replaced, each whole.
        adapter_name: Which adapter; by default the active one.

    Returns:
        The folder.

    Raises:
        TypeError: `model` has no iLoRA adapter.
        ValueError: Not exactly one instance; tokens are routed; a bias on B for a layer for which
            PEFT takes none (embeddings, HQQ, torchao); trained biases, tokens or `modules_to_save`,
            which a served LoRA cannot carry. Nothing has been written then.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, Merging):
        raise TypeError(
            f"model is a {type(model).__name__} without an iLoRA adapter; pass what "
            "get_peft_model(llm, ILoRAConfig(...)) or PeftModel.from_pretrained returned"
        )
    name = adapter_name or tuner.active_adapters[0]
    config, folded = tuner.plain_lora(routing_embeds, name)
    extras = ("bias", "modules_to_save", "trainable_token_indices")
    trained = {key: getattr(config, key) for key in extras if getattr(config, key) not in _NOTHING}
    if trained:
        raise ValueError(
            f"adapter {name!r} also trains {trained}: a plain LoRA for serving cannot carry them"
        )
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {lora_key(key): value for key, value in saved.items() if f"{GATES}." not in key}
    for key, weight in folded.items():
        tensors[f"base_model.model.{key}"] = weight
    config.inference_mode = True
    _write(
        Path(folder),
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
        config.to_dict(),
    )
    return Path(folder)


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    """Write both files beside their place and then rename them, the config last."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        weights, settings = Path(staging) / WEIGHTS, Path(staging) / CONFIG
        save_file(tensors, weights, metadata={"format": "pt"})
        settings.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        weights.replace(folder / WEIGHTS)
        settings.replace(folder / CONFIG)
