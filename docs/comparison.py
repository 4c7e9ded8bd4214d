"""Tries the README's comparison on a two-layer Llama: `python docs/comparison.py`.

Prints one line for each method and question: what came out, or the exception. All adapters start
from random numbers, not from an update of zero, so that an update that is lost would show.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PolyConfig, XLoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from peft_ilora import ILoRAConfig

COMMON = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
IDS = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def llama() -> LlamaForCausalLM:
    """The same base model every time."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    # X-LoRA asks for a base model without a KV cache
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, use_cache=False))


def two_loras(folder: Path) -> dict[str, str]:
    """Two saved LoRAs by name."""
    for name in ("0", "1"):
        model = get_peft_model(llama(), LoraConfig(r=4, init_lora_weights=False, **COMMON))
        model.save_pretrained(str(folder / name))
    return {name: str(folder / name) for name in ("0", "1")}


def lora_model(loras: dict[str, str]) -> PeftModel:
    """A base with both LoRAs."""
    model = PeftModel.from_pretrained(llama(), loras["0"], "0", is_trainable=True)
    model.load_adapter(loras["1"], "1")
    return model


def methods(loras: dict[str, str]) -> dict[str, tuple[Callable[[], PeftModel], dict[str, object]]]:
    """By name: a fresh model, and the keywords that say which instance a row belongs to."""
    ilora = ILoRAConfig(num_experts=2, r=4, routing_dim=8, init_lora_weights=False, **COMMON)
    users = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    poly = PolyConfig(r=4, n_tasks=2, n_skills=2, init_weights=False, **COMMON)
    xlora = XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=loras)
    return {
        "LoRA": (lambda: lora_model(loras), {}),
        "LoRA, adapter_names": (lambda: lora_model(loras), {"adapter_names": ["0", "1"]}),
        "X-LoRA": (lambda: get_peft_model(llama(), xlora), {}),
        "Poly": (lambda: get_peft_model(llama(), poly), {"task_ids": torch.tensor([0, 1])}),
        "iLoRA": (lambda: get_peft_model(llama(), ilora), {"routing_embeds": users}),
    }


def train(model: PeftModel, instances: dict[str, object]) -> str:
    """One forward and backward pass in training mode."""
    model.train()(**INPUTS, labels=IDS, **instances).loss.backward()
    return "yes"


def checkpointed(model: PeftModel, instances: dict[str, object]) -> str:
    """The same with transformers' gradient checkpointing."""
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    return train(model, instances)


def generate(model: PeftModel, instances: dict[str, object], **options: object) -> str:
    """Three tokens."""
    caches = []
    inner = model.get_base_model().model
    hook = inner.register_forward_hook(lambda _, __, out: caches.append(out.past_key_values))
    model.generate(**INPUTS, **instances, max_new_tokens=3, use_cache=True, **options)
    hook.remove()
    return "yes" if caches[-1] is not None else "yes, without KV cache"


def passes(model: PeftModel, instances: dict[str, object]) -> str:
    """How often a forward runs the first layer."""
    calls: list[int] = []
    layer = model.get_base_model().model.layers[0]
    layer.register_forward_hook(lambda *_: calls.append(1))
    model.eval()(**INPUTS, **instances)
    return str(len(calls))


def merged(model: PeftModel, instances: dict[str, object]) -> str:
    """Whether merging keeps the outputs; iLoRA merges the first row's instance."""
    model.eval()
    instances = {
        name: value[:1] if isinstance(value, Tensor | list) else value
        for name, value in instances.items()
    }
    inputs = {name: value[:1] for name, value in INPUTS.items()}
    before = model(**inputs, **instances).logits
    own = {
        name: instances[name] for name in ("routing_embeds", "adapter_names") if name in instances
    }
    after = model.merge_and_unload(**own)(**inputs).logits
    return "yes" if torch.allclose(before, after, atol=1e-4) else "yes, with other outputs"


QUESTIONS: dict[str, Callable[[PeftModel, dict[str, object]], str]] = {
    "training": train,
    "gradient checkpointing": checkpointed,
    "passes over the model": passes,
    "generate": lambda model, instances: generate(model.eval(), instances),
    "generate, two beams": lambda model, i: generate(model.eval(), i, num_beams=2),
    "merge": merged,
}


def main() -> None:
    """Ask every method every question."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, instances) in methods(two_loras(Path(folder))).items():
            for question, ask in QUESTIONS.items():
                try:
                    answer = ask(make(), instances)
                except Exception as error:  # noqa: BLE001 - the exception is the answer
                    answer = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{name:<20} {question:<23} {answer}")


if __name__ == "__main__":
    main()
