"""The model card of a saved adapter: README.md, of which only our part is written anew.

PEFT fills in the metadata at the head of the file and a template for people to complete.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from torch import nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.layers.adapters import Adapters

README = "README.md"
BEGIN = "<!-- peft_ilora: save_pretrained writes these lines anew, and leaves the others alone -->"
END = "<!-- peft_ilora: end -->"
_EMPTY_METADATA = ("base_model: ''", "- 'base_model:adapter:'")
"""What PEFT writes about a base model without a name, which the Hub takes for a name."""


def write_card(model: PeftModel, folder: Path, adapters: Sequence[str], is_new: bool) -> None:
    """Describe adapters in a folder's README.md.

    Args:
        model: The model, with iLoRA adapters.
        folder: Where PEFT has written the file.
        adapters: Which adapters the folder holds.
        is_new: Whether PEFT has just made the file, so that what follows its head is a template.
    """
    path = folder / README
    head, body = _parted(path.read_text(encoding="utf-8"))
    sections = [_title(model), *(_section(model, name) for name in adapters)]
    ours = "\n\n".join([BEGIN, *sections, END])
    before, begin, rest = body.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        body = before + ours + after
    elif is_new:
        body = f"\n{ours}\n\n{body[body.rfind('### Framework versions') :]}"
    else:
        body = f"\n{ours}\n\n{body.lstrip()}"
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        draft = Path(staging) / README
        draft.write_text(f"{head}{body.rstrip()}\n", encoding="utf-8")
        draft.replace(path)


def _parted(text: str) -> tuple[str, str]:
    """Return the metadata between two lines of dashes, and what follows."""
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].strip() != "---":
        return "", text
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    head = [line for line in lines[: end + 1] if line.strip() not in _EMPTY_METADATA]
    return "".join(head), "".join(lines[end + 1 :])


def _title(model: PeftModel) -> str:
    base = _source(model) or f"a {type(model.get_base_model()).__name__}"
    return (
        f"# iLoRA adapter of {base}\n\n"
        "An instance-wise LoRA ([arXiv 2408.10159](https://arxiv.org/abs/2408.10159)) for "
        "[PEFT](https://github.com/huggingface/peft) and the package `peft_ilora`: a gate sets "
        "anew, for every row of a batch, what one LoRA does. **Import `peft_ilora` before loading "
        "it**; without it PEFT says `KeyError: 'ILORA'`."
    )


def _section(model: PeftModel, name: str) -> str:
    config = model.peft_config[name]
    assert isinstance(config, ILoRAConfig)
    tuner_adapters = model.base_model.adapters
    assert isinstance(tuner_adapters, Adapters)
    leaves = {layer.name.rpartition(".")[2] for layer in tuner_adapters.layers(name)}
    table = {
        "base model": _source(model) or type(model.get_base_model()).__name__,
        **_size(config),
        "adapted modules": ", ".join(f"`{leaf}`" for leaf in sorted(leaves)),
        "gate": _gate(config),
        "routing embeds": _reads(config),
        "where they come from": config.routing_source
        or "not stated: whoever shares the adapter should, by "
        '`model.peft_config[name].routing_source = "..."` before `save_pretrained`',
    }
    if config.gate_input == "token":
        del table["where they come from"]
    rows = [f"| {key} | {_cell(value)} |" for key, value in table.items()]
    heading = f"## Adapter `{name}`"
    code = "\n".join(_code(model, name, config))
    return "\n".join([heading, "", "| | |", "|---|---|", *rows, "", "```python", code, "```"])


def _size(config: ILoRAConfig) -> dict[str, str]:
    alpha = f"lora_alpha {config.lora_alpha:g}"
    if config.gate_form != "softmax":
        return {"total rank": f"{config.total_rank} ({alpha})"}
    ranks = ", ".join(map(str, config.expert_ranks or [config.r] * config.num_experts))
    total = f"total rank {config.total_rank}, {alpha}"
    return {"experts": f"{config.num_experts}, of rank {ranks} ({total})"}


def _gate(config: ILoRAConfig) -> str:
    scope = "one for all layers" if config.gate_scope == "shared" else "one for each layer"
    extras = {
        "temperature": config.temperature if config.temperature != 1 else None,
        "top_k": config.top_k,
        "noise_std in training": config.noise_std or None,
    }
    said = [f"{key} {value:g}" for key, value in extras.items() if value is not None]
    reads = f"`gate_input={config.gate_input!r}`"
    form = [] if config.gate_form == "softmax" else [f"`gate_form={config.gate_form!r}`"]
    shown = [f"`{config.gate}`", *form, reads, f"{scope} (`{config.gate_scope}`)"]
    return ", ".join([*shown, *said])


def _reads(config: ILoRAConfig) -> str:
    if config.gate_input == "token":
        return "none: the gate reads each token's hidden state at the layer"
    if config.gate == "hard":
        return f"expert ids, int64, [batch], in 0..{config.num_experts - 1}"
    vectors = f"vectors, floating point, [batch, {config.routing_dim}]"
    if config.gate_input == "prompt":
        return f"none needed: the gate reads the prompt's mean input embedding; or {vectors}"
    return f"{vectors}, one for each row of a batch"


def _code(model: PeftModel, name: str, config: ILoRAConfig) -> list[str]:
    base = model.get_base_model()
    cls = type(base)
    source = _source(model)
    known = cls.__module__.startswith("transformers.") and source
    lines = ["import peft_ilora  # first: it makes the method known to PEFT", "import torch"]
    lines += ["from peft import PeftModel"]
    if known:
        lines += [f"from transformers import {cls.__name__}", ""]
        lines += [f"base = {cls.__name__}.from_pretrained({source!r})"]
    else:
        lines += ["", f"base = ...  # the {cls.__name__} that was adapted"]
    folder = "." if name == "default" else f"./{name}"
    lines += [
        f'model = PeftModel.from_pretrained(base, "{folder}").eval()  # or its name on the Hub'
    ]
    takes_ids = getattr(base, "main_input_name", "") == "input_ids"
    batch = "input_ids=ids" if takes_ids else "..."
    lines += ["", "ids = torch.tensor([[1, 2, 3], [3, 2, 1]])  # two rows, of a tokenizer"][
        : 2 if takes_ids else 0
    ]
    lines += _routing(config)
    keyword = ", routing_embeds=routing_embeds" if config.gate_input == "routing" else ""
    lines += [f"output = model({batch}{keyword})"]
    if takes_ids and cls.__name__.endswith("ForCausalLM") and config.task_type == "CAUSAL_LM":
        lines += [f"tokens = model.generate({batch}{keyword}, max_new_tokens=5)"]
    if config.gate_input != "token" and not (config.modules_to_save or config.bias != "none"):
        given = "routing_embeds[:1]"
        if config.gate_input == "prompt":
            given = "model.prompt_embeds(ids[:1])"
        lines += ["", "# one row's mixture as a plain LoRA, which needs no `peft_ilora`"]
        lines += [f'peft_ilora.export_lora(model, {given}, "one-row")']
    return lines


def _routing(config: ILoRAConfig) -> list[str]:
    if config.gate_input != "routing":
        return []
    if config.gate == "hard":
        return ["routing_embeds = torch.tensor([0, 1])  # in place of these, your rows' experts"]
    shape = f"2, {config.routing_dim}"
    return [f"routing_embeds = torch.randn({shape})  # in place of these, your rows' vectors"]


def _source(model: PeftModel) -> str:
    base: nn.Module = model.get_base_model()
    name = getattr(base, "name_or_path", "")
    return name if isinstance(name, str) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
