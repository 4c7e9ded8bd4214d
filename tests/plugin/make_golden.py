"""Writes the golden adapters: small adapters of a released format that must stay loadable.

    python tests/plugin/make_golden.py 0.1

writes `golden/0.1/<name>/` with the adapter's two files and a manifest of its tensors and outputs.
A format is written once, and never again: what exists is left as it is. Base model, adapter and
inputs come from a formula, so they are the same with every version of torch.
"""

import argparse
import errno
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import peft_ilora
from peft_ilora import ILoRAConfig

GOLDEN = Path(__file__).parent / "golden"
CONFIGS: dict[str, dict[str, Any]] = {
    "shared_linear": {},
    "per_module_mlp": {"gate": "mlp", "gate_scope": "per_module"},
    "trunk_scale_shift": {"gate": "trunk", "gate_form": "scale_shift"},
}
INPUT_IDS = [[1, 5, 9, 3, 7], [2, 18, 4, 11, 6]]


def values(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Numbers between -1 and 1, the same on every machine."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * steps + phase).float().reshape(shape)


def base_model() -> LlamaForCausalLM:
    """A Llama of two layers, every weight by the formula."""
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=20,
            pad_token_id=0,
            tie_word_embeddings=False,
            name_or_path="a-tiny-llama",
        )
    )
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        scaled = 0.4 * values(parameter.shape, phase=index)
        parameter.data.copy_(scaled + 1 if "norm" in name else scaled)
    return model.eval()


def adapted(name: str) -> PeftModel:
    """The golden adapter of this name, as the installed version makes it."""
    config = ILoRAConfig(
        num_experts=2,
        r=2,
        lora_alpha=3,
        routing_dim=4,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
        **CONFIGS[name],
    )
    model = get_peft_model(base_model(), config)
    trained = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for index, (key, parameter) in enumerate(trained):
        scale = 0.8 if "gate" in key else 0.5
        nn.init.zeros_(parameter).data.add_(scale * values(parameter.shape, phase=100 + index))
    return model.eval()


def save(model: PeftModel, folder: Path) -> None:
    """Save the adapter alone."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> shape and dtype of a saved adapter, sorted."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        slices = {key: file.get_slice(key) for key in sorted(file.keys())}
        return {
            key: {"shape": part.get_shape(), "dtype": part.get_dtype()}
            for key, part in slices.items()
        }


def inputs() -> tuple[Tensor, Tensor]:
    """Token ids [2, 5] and routing embeddings [2, 4]."""
    return torch.tensor(INPUT_IDS), 2 * values((2, 4), phase=50)


@torch.no_grad()
def outputs(model: PeftModel) -> dict[str, Any]:
    """What the golden input gives: the last position's logits, and the gates' weights."""
    ids, z = inputs()
    weights = model.gate_weights(z)
    if isinstance(weights, Tensor):
        weights = {"shared": weights}
    return {
        "logits": model(input_ids=ids, routing_embeds=z).logits[:, -1].tolist(),
        "gate_weights": {name: weight.tolist() for name, weight in weights.items()},
    }


def write(release: str, root: Path = GOLDEN) -> None:
    """Write those golden adapters of a release's format that there are not yet.

    Raises:
        FileExistsError: All of them have been written already.
    """
    new = [name for name in CONFIGS if not (root / release / name).exists()]
    if not new:
        raise FileExistsError(errno.EEXIST, "written already", str(root / release))
    for name in new:
        folder = root / release / name
        model = adapted(name)
        save(model, folder)
        packages = ("peft", "transformers", "torch", "safetensors")
        made_with = {package: version(package).partition("+")[0] for package in packages}
        manifest = {
            "tensors": tensors(folder),
            "outputs": outputs(model),
            "made_with": {"peft-ilora": peft_ilora.__version__, **made_with},
        }
        text = json.dumps(manifest, indent=2, sort_keys=True)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", help="the release whose format this is, such as 0.1")
    try:
        write(parser.parse_args().release)
    except FileExistsError as error:
        parser.exit(1, f"{error.filename} exists: a released format is never rewritten\n")
