"""Writes docs/parameters.md: what adapters cost at the shape of Llama 2 7B, in parameters.

`python docs/parameters.py`. The model and its adapters are made on PyTorch's meta device, which
holds shapes and no numbers, and their parameters are counted.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from peft_ilora import ILoRAConfig
from peft_ilora.saving import GATES
from recipes.experiment import AdapterSettings
from recipes.llm.language_model import peft_wrapping
from recipes.prompting.projector import Projector

PAGE = Path(__file__).with_suffix(".md")
WIDTH = 64
"""Width of the recommender's vectors (the paper's)."""
RANK = 16
TARGETS = AdapterSettings().target_modules


def lora(rank: int) -> LoraConfig:
    """Plain LoRA."""
    return LoraConfig(r=rank, target_modules=TARGETS)


def ilora(experts: int = 4, **options: object) -> ILoRAConfig:
    """ILoRA of the same total rank."""
    settings: dict = {"routing_dim": WIDTH} | options
    return ILoRAConfig(num_experts=experts, r=RANK // experts, target_modules=TARGETS, **settings)


def adapters(model_width: int) -> dict[str, PeftConfig]:
    """The lines of the table."""
    tokens = {"gate_input": "token", "gate_scope": "per_module"}
    return {
        "LoRA, r = 16": lora(RANK),
        "LoRA, r = 8": lora(8),
        **{
            f"iLoRA, {k} expert{'s' if k > 1 else ''} (the paper's form)": ilora(k)
            for k in (1, 2, 4, 8)
        },
        "iLoRA, 4 experts, a gate in every module": ilora(gate_scope="per_module"),
        "iLoRA, 4 experts, `mlp` gate": ilora(gate="mlp"),
        "iLoRA, `scale`, linear gate": ilora(gate_form="scale"),
        "iLoRA, `scale`, `trunk` gate": ilora(gate_form="scale", gate="trunk"),
        "iLoRA, `scale_shift`, `trunk` gate": ilora(gate_form="scale_shift", gate="trunk"),
        "`gate-prompt`: a gate on the prompt": ilora(gate_input="prompt", routing_dim=model_width),
        "`gate-token`: gates on tokens": ilora(**tokens),
    }


def counted(model: PeftModel) -> tuple[int, int]:
    """Trained parameters of A and B, and of gates."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    gate = sum(count for name, count in trained.items() if f".{GATES}." in name)
    return sum(trained.values()) - gate, gate


def page(shape: LlamaConfig | None = None) -> str:
    """The page's text, for Llama 2 7B or another shape."""
    shape = LlamaConfig() if shape is None else shape
    lines = []
    with torch.device("meta"), peft_wrapping():
        base = LlamaForCausalLM(shape)
        size = base.num_parameters()
        projector = sum(p.numel() for p in Projector(WIDTH, shape.hidden_size).parameters())
        reference = 0
        for name, config in adapters(shape.hidden_size).items():
            model = get_peft_model(base, config)
            matrices, gate = counted(model)
            model.base_model.unload()
            reference = reference or matrices
            more = (matrices + gate) / reference - 1
            lines.append(
                f"| {name} | {matrices:,} | {gate:,} | {matrices + gate:,} | "
                f"{100 * more:+.4f} % | {100 * (matrices + gate) / size:.4f} % |"
            )
    return (
        HEAD.format(
            size=size,
            layers=shape.num_hidden_layers,
            width=shape.hidden_size,
            inner=shape.intermediate_size,
        )
        + "\n".join(lines)
        + TAIL.format(projector=projector, share=100 * projector / reference, vector=WIDTH)
    )


HEAD = """# Parameters at the shape of Llama 2 7B

Written by `python docs/parameters.py`, which makes the model and its adapters without weights, and
counts: {layers} layers of width {width} and {inner}, {size:,} parameters; q, k, v, o, gate, up and
down are adapted at a total rank of 16, and a gate reads vectors of width 64.

| adapter | A and B | gates | together | over LoRA, r = 16 | of the base model |
|---|---|---|---|---|---|
"""
TAIL = """

- The paper's gate adds {vector} parameters for each expert, whatever the size of the model. The
  paper says that iLoRA has less than 1 % more parameters than LoRA.
- **The projector is dearer than any linear gate.** Slots after titles, in LLaRA and iLoRA, are
  filled by a projector of {projector:,} parameters, {share:.1f} % of LoRA's; a user slot shares it.
  `tallrec` has no slots and no projector, so that a comparison with it compares these too.
"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
