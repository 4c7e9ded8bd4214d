"""What can be done wrong, and the exception that answers: the table of docs/errors.md.

`python tests/plugin/misuses.py` writes the table; `test_misuses.py` holds it against the code.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from conftest import ROUTING_DIM, adapted, tiny_llama

from peft_ilora import ILoRAConfig, RoutingCollator, export_lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


@dataclass
class Kit:
    """What a misuse plays with."""

    folder: Path
    ids: Tensor = field(
        default_factory=lambda: torch.arange(3, 24).view(3, 7)  # three rows
    )
    z: Tensor = field(default_factory=lambda: torch.linspace(-1, 1, 24).view(3, ROUTING_DIM))

    def __post_init__(self) -> None:
        self.model = adapted()

    def saved(self) -> Path:
        self.model.save_pretrained(self.folder)
        return self.folder

    def load(self) -> PeftModel:
        return PeftModel.from_pretrained(tiny_llama(), self.folder)

    def edit_config(self, **fields: Any) -> None:
        path = self.folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@dataclass(frozen=True)
class Misuse:
    """One row of the table."""

    area: str
    title: str
    act: Callable[[Kit], Any]


MISUSES: list[Misuse] = []
_area = ""


def area(name: str) -> None:
    global _area
    _area = name


def misuse(title: str, act: Callable[[Kit], Any]) -> None:
    MISUSES.append(Misuse(_area, title, act))


def config(title: str, **fields: Any) -> None:
    misuse(f"`{title}`", lambda kit: ILoRAConfig(**fields))


def forward(title: str, make: Callable[[Tensor], Any], **settings: Any) -> None:
    def act(kit: Kit) -> None:
        model = adapted(**settings) if settings else kit.model
        model(input_ids=kit.ids, routing_embeds=make(kit.z))

    misuse(title, act)


class Experts(nn.Module):
    """A mixture of experts as a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({"expert_0": nn.Linear(2, 2)})


def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))


def xlnet() -> nn.Module:
    from transformers import XLNetConfig, XLNetLMHeadModel

    return XLNetLMHeadModel(XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=2, d_inner=8))


def wrap(base: nn.Module, target: str, **fields: Any) -> PeftModel:
    return get_peft_model(base, ILoRAConfig(target_modules=[target], **fields))


area("Configuration")
config("num_experts=0", num_experts=0)
config("num_experts=2.5", num_experts=2.5)
config("r=0", r=0)
config("r=True", r=True)
config("routing_dim=-1", routing_dim=-1)
config("gate='softmax'", gate="softmax")
config("gate='top_k'", gate="top_k")
config("gate='noisy'", gate="noisy")
config("gate_input='user'", gate_input="user")
config("gate_scope='layer'", gate_scope="layer")
config("gate_init='ones'", gate_init="ones")
config("scaling_rank='sum'", scaling_rank="sum")
config("missing_routing='zeros'", missing_routing="zeros")
config("temperature=-1", temperature=-1)
config("temperature=0", temperature=0)
config("noise_std=-0.1", noise_std=-0.1)
config("top_k=0", top_k=0)
config("num_experts=4, top_k=5", top_k=5)
config("num_experts=4, expert_ranks=[8, 4]", expert_ranks=[8, 4])
config("expert_ranks=[8, 4, 2, 0]", expert_ranks=[8, 4, 2, 0])
config("expert_ranks='8,4,2,2'", expert_ranks="8,4,2,2")
config("expert_ranks and rank_pattern", expert_ranks=[8, 4, 2, 2], rank_pattern={"q_proj": 2})
config("rank_pattern={'q_proj': 0}", rank_pattern={"q_proj": 0})
config("gate='hard', gate_input='token'", gate="hard", gate_input="token")
config("gate='hard', top_k=2", gate="hard", top_k=2)
config("gate_input='token', gate_scope='shared'", gate_input="token")
config("lora_dropout=1.5", lora_dropout=1.5)
config("lora_dropout='0.1'", lora_dropout="0.1")
config("lora_alpha='16'", lora_alpha="16")
config("rank_pattern=[3]", rank_pattern=[3])
config("use_dora=True", use_dora=True)
config("lora_bias=True", lora_bias=True)
config("init_lora_weights='pissa'", init_lora_weights="pissa")
config("target_parameters=['w']", target_parameters=["w"])

area("Wrapping a model")


def changed_later(name: str, value: Any) -> Callable[[Kit], Any]:
    def act(kit: Kit) -> None:
        config = ILoRAConfig(target_modules=["q_proj"])
        setattr(config, name, value)
        get_peft_model(tiny_llama(), config)

    return act


def own_layer(kit: Kit) -> None:
    config = ILoRAConfig(target_modules=["q_proj"])
    config._register_custom_module({nn.Linear: nn.Linear})
    get_peft_model(tiny_llama(), config)


misuse(
    "an option set after construction: `config.use_dora = True`", changed_later("use_dora", True)
)
misuse("a LoRA layer class of one's own", own_layer)
misuse("no such target module", lambda kit: wrap(tiny_llama(), "nothing"))
misuse(
    "target: MultiheadAttention", lambda kit: wrap(nn.Sequential(nn.MultiheadAttention(4, 2)), "0")
)
misuse("target: an expert of a mixture", lambda kit: wrap(Experts(), "expert_0"))
misuse(
    "target: inside TransformerEncoderLayer",
    lambda kit: wrap(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4)), "linear1"),
)
misuse(
    "target: a convolution whose groups do not divide r",
    lambda kit: wrap(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)), "0", r=3),
)
misuse("target: a norm", lambda kit: wrap(nn.Sequential(nn.LayerNorm(4)), "0"))
misuse(
    "target: an embedding, with token routing",
    lambda kit: wrap(tiny_llama(), "embed_tokens", gate_input="token", gate_scope="per_module"),
)
misuse(
    "prompt routing with another width than the model's",
    lambda kit: wrap(tiny_llama(), "q_proj", gate_input="prompt"),
)
misuse(
    "prompt routing of a model without embeddings",
    lambda kit: wrap(nn.Sequential(nn.Linear(2, 2)), "0", gate_input="prompt"),
)
misuse(
    "a base model that is wrapped already", lambda kit: wrap(kit.model.get_base_model(), "q_proj")
)
misuse(
    "a PeftModel, wrapped a second time",
    lambda kit: get_peft_model(kit.model, ILoRAConfig(target_modules=["q_proj"])),
)
misuse("a Mamba's projections", lambda kit: wrap(mamba(), "x_proj"))
misuse("a sequence-first model", lambda kit: wrap(xlnet(), "layer_1"))
misuse(
    "a sequence-first model inside of another module",
    lambda kit: wrap(nn.Sequential(xlnet()), "layer_1"),
)
misuse(
    "`PeftMixedModel`",
    lambda kit: PeftMixedModel(tiny_llama(), ILoRAConfig(target_modules=["q_proj"])),
)
misuse(
    "`inject_adapter_in_model`",
    lambda kit: inject_adapter_in_model(ILoRAConfig(target_modules=["q_proj"]), tiny_llama()),
)
misuse("a LoRA beside the iLoRA", lambda kit: kit.model.add_adapter("lora", LoraConfig()))
misuse(
    "`transformers_model.load_adapter(folder)`", lambda kit: tiny_llama().load_adapter(kit.saved())
)

area("Routing a forward")
misuse("no routing", lambda kit: kit.model(input_ids=kit.ids))
misuse("a typo: `routing_embed=z`", lambda kit: kit.model(input_ids=kit.ids, routing_embed=kit.z))
misuse("`generate` without routing", lambda kit: kit.model.generate(input_ids=kit.ids))
misuse("the inner model, past the wrapper", lambda kit: kit.model.get_base_model().model(kit.ids))
forward("a list", lambda z: z.tolist())
forward("a numpy array", lambda z: z.numpy())
forward("integers", lambda z: z.long())
forward("one vector", lambda z: z[0])
forward("three dimensions", lambda z: z[:, None])
forward("no rows", lambda z: z[:0])
forward("another width than `routing_dim`", lambda z: z[:, :5])
forward("fewer rows than the batch", lambda z: z[:2])
forward("NaN", lambda z: z.where(z < 0, torch.nan))
forward("infinity", lambda z: z / 0)
forward("on the meta device", lambda z: z.to("meta"))
forward("vectors for `gate='hard'`", lambda z: z, gate="hard")
forward("an expert that does not exist", lambda z: torch.tensor([0, 4, 1]), gate="hard")
forward("expert ids of two dimensions", lambda z: torch.zeros(3, 1).long(), gate="hard")
forward("expert ids for a linear gate", lambda z: torch.tensor([0, 1, 2]))
forward("routing for token gates", lambda z: z, gate_input="token", gate_scope="per_module")


def in_context(kit: Kit, **inner: Any) -> None:
    with kit.model.routing(kit.z):
        kit.model(input_ids=kit.ids, **inner)


def nested_contexts(kit: Kit) -> None:
    with kit.model.routing(kit.z), kit.model.routing(kit.z):
        pass


def context_of_wrong_rows(kit: Kit) -> None:
    with kit.model.routing(kit.z[:2]):
        kit.model(input_ids=kit.ids)


def wide_adapter_beside(kit: Kit, **fields: Any) -> None:
    settings = {"target_modules": ["q_proj"], "routing_dim": 9}
    kit.model.add_adapter("other", ILoRAConfig(**settings | fields))
    kit.model.base_model.set_adapter(["default", "other"])
    try:
        kit.model(input_ids=kit.ids, routing_embeds=kit.z)
    finally:
        kit.model.set_adapter("default")
        kit.model.delete_adapter("other")


def continued(kit: Kit) -> None:
    model = adapted(gate_input="prompt", routing_dim=32)
    cache = model(input_ids=kit.ids, use_cache=True).past_key_values
    model(input_ids=kit.ids[:, :1], past_key_values=cache)


class Gathered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(0, 1)[:5])


misuse(
    "the keyword inside `with model.routing(z)`", lambda kit: in_context(kit, routing_embeds=kit.z)
)
misuse("`model.routing` inside `model.routing`", nested_contexts)
misuse("a context of fewer rows than the batch", context_of_wrong_rows)
misuse(
    "`generate` with fewer rows than prompts",
    lambda kit: kit.model.generate(input_ids=kit.ids, routing_embeds=kit.z[:1], max_new_tokens=1),
)
misuse("two active adapters of different `routing_dim`", wide_adapter_beside)
misuse(
    "a hard and a linear adapter active together",
    lambda kit: wide_adapter_beside(kit, gate="hard"),
)
misuse(
    "a layer that sees other rows than the batch's",
    lambda kit: wrap(Gathered(), "fc", routing_dim=8)(torch.ones(3, 5, 4), routing_embeds=kit.z),
)
misuse(
    "prompt routing where labels leave no prompt",
    lambda kit: adapted(gate_input="prompt", routing_dim=32)(input_ids=kit.ids, labels=kit.ids),
)
misuse("prompt routing of a continued sequence", continued)
misuse(
    "prompt routing in training without labels",
    lambda kit: adapted(gate_input="prompt", routing_dim=32).train()(input_ids=kit.ids),
)

area("Adapters, merging, export")


def merged(kit: Kit) -> PeftModel:
    kit.model.merge_adapter(routing_embeds=kit.z[:1])
    return kit.model


def unmerging(act: Callable[[Kit], Any]) -> Callable[[Kit], Any]:
    def run(kit: Kit) -> None:
        try:
            act(kit)
        finally:
            kit.model.unmerge_adapter()

    return run


def broken_weights(kit: Kit) -> None:
    weight = kit.model.get_base_model().model.layers[1].mlp.down_proj.lora_B["default"].weight
    before = weight.data.clone()
    weight.data[0] = torch.nan
    try:
        kit.model.merge_adapter(safe_merge=True, routing_embeds=kit.z[:1])
    finally:
        weight.data = before


def hotswap_prepared(kit: Kit) -> None:
    model = adapted()
    prepare_model_for_compiled_hotswap(model, target_rank=32)
    model(input_ids=kit.ids, routing_embeds=kit.z)


def no_gradients(kit: Kit) -> None:
    model = adapted(gate_input="token", gate_scope="per_module")
    with torch.no_grad():
        model(input_ids=kit.ids)
    model.routing_losses()


misuse("merge without an instance", lambda kit: kit.model.merge_and_unload())
misuse("merge of three instances", lambda kit: kit.model.merge_adapter(routing_embeds=kit.z))
misuse(
    "merge of token routing",
    lambda kit: adapted(gate_input="token", gate_scope="per_module").merge_and_unload(),
)
misuse(
    "merge of replicated layers",
    lambda kit: adapted(layer_replication=[(0, 2), (1, 2)]).merge_and_unload(
        routing_embeds=kit.z[:1]
    ),
)
misuse("safe merge of broken weights", broken_weights)
misuse(
    "routing of a merged model",
    unmerging(lambda kit: merged(kit)(input_ids=kit.ids, routing_embeds=kit.z)),
)
misuse(
    "`add_weighted_adapter`",
    lambda kit: kit.model.add_weighted_adapter(["default"], [1.0], "new"),
)
misuse("unknown adapter: `set_adapter`", lambda kit: kit.model.set_adapter("nobody"))
misuse("unknown adapter: `delete_adapter`", lambda kit: kit.model.delete_adapter("nobody"))
misuse("unknown adapter: `gate_weights`", lambda kit: kit.model.gate_weights(kit.z, "nobody"))
misuse(
    "unknown adapter: `adapter_names`",
    lambda kit: kit.model(
        input_ids=kit.ids, routing_embeds=kit.z, adapter_names=["nobody", "default", "default"]
    ),
)
misuse(
    "a mixed batch in training",
    lambda kit: adapted().train()(
        input_ids=kit.ids, routing_embeds=kit.z, adapter_names=["default"] * 3
    ),
)
misuse(
    "a mixed batch of adapters on embeddings",
    lambda kit: adapted(target_modules=["embed_tokens"])(
        input_ids=kit.ids, routing_embeds=kit.z, adapter_names=["default"] * 3
    ),
)
misuse("statistics before a forward", lambda kit: adapted().routing_statistics())
misuse("routing losses of a forward without gradients", no_gradients)
misuse("hot-swapping", lambda kit: hotswap_adapter(kit.model, str(kit.saved()), "default"))
misuse("hot-swapping, prepared", hotswap_prepared)
misuse(
    "export of a plain LoRA",
    lambda kit: export_lora(get_peft_model(tiny_llama(), LoraConfig()), kit.z[:1], kit.folder),
)
misuse("export of two instances", lambda kit: export_lora(kit.model, kit.z[:2], kit.folder))
misuse(
    "export of an adapter with `modules_to_save`",
    lambda kit: export_lora(adapted(modules_to_save=["lm_head"]), kit.z[:1], kit.folder),
)
misuse(
    "export of an unknown adapter",
    lambda kit: export_lora(kit.model, kit.z[:1], kit.folder, adapter_name="nobody"),
)

area("Saved adapters and data")


def truncated(kit: Kit) -> None:
    path = kit.saved() / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    kit.load()


def rewritten(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Kit], Any]:
    def act(kit: Kit) -> None:
        path = kit.saved() / WEIGHTS
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        kit.load()

    return act


def reconfigured(**fields: Any) -> Callable[[Kit], Any]:
    def act(kit: Kit) -> None:
        kit.saved()
        kit.edit_config(**fields)
        kit.load()

    return act


def lora_file(kit: Kit) -> None:
    kit.saved()
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    lora.save_pretrained(kit.folder / "lora")
    shutil.copy(kit.folder / "lora" / WEIGHTS, kit.folder / WEIGHTS)
    kit.load()


def ilora_file_in_a_lora(kit: Kit) -> None:
    state = load_file(kit.saved() / WEIGHTS)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    plain = get_peft_model(tiny_llama(), LoraConfig(r=16, target_modules=targets))
    found = set_peft_model_state_dict(plain, state)
    raise KeyError(f"PEFT only reports: {len(found.unexpected_keys)} unexpected keys")


def collate(features: list[dict[str, Any]]) -> Callable[[Kit], Any]:
    return lambda kit: RoutingCollator(lambda rest: {"rows": len(rest)})(features)


misuse("a truncated file", truncated)
misuse("a tensor is missing", rewritten(lambda s: {k: v for k, v in s.items() if "gate" not in k}))
misuse("a foreign safetensors file", rewritten(lambda s: {"weight": torch.zeros(2)}))
misuse("another shape", rewritten(lambda s: {k: v[:1].contiguous() for k, v in s.items()}))
misuse("a plain LoRA's weights with an iLoRA's config", lora_file)
misuse("the config has another gate than the weights", reconfigured(gate="mlp"))
misuse("the config names an impossible value", reconfigured(temperature=-1))
misuse("no adapter in the folder", lambda kit: kit.load())
misuse(
    "collator: a row without the column", collate([{"routing_embeds": [0.0]}, {"input_ids": [1]}])
)
misuse(
    "collator: rows of different width",
    collate([{"routing_embeds": [0.0]}, {"routing_embeds": [0.0, 1.0]}]),
)
misuse("collator: NaN", collate([{"routing_embeds": [float("nan")]}]))
misuse("collator: text", collate([{"routing_embeds": "user 7"}]))


def outcome(case: Misuse, kit: Kit) -> BaseException | None:
    """What a misuse raises."""
    try:
        case.act(kit)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def row(case: Misuse, error: BaseException | None, folder: Path) -> str:
    """The table's row."""
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    text = re.sub(r"\s+", " ", message.replace(str(folder), "FOLDER")).replace("|", "\\|")
    return f"| {case.title} | `{type(error).__name__}` | {text} |"


def page(rows: dict[str, list[str]]) -> str:
    """docs/errors.md."""
    count = sum(map(len, rows.values()))
    lines = [
        "# Errors",
        "",
        f"{count} things that can be done wrong and the exception that answers. Each row is a test "
        "(`tests/plugin/test_misuses.py`), and the page is written by "
        "`python tests/plugin/misuses.py`. The examples' model is a tiny Llama of two layers, the "
        "batch has three rows, `routing_dim` is 8. Nothing is changed by a call that fails.",
    ]
    for name, found in rows.items():
        lines += ["", f"## {name}", "", "| what was done | exception | message |", "|---|---|---|"]
        lines += found
    return "\n".join(lines) + "\n"


def main() -> None:
    rows: dict[str, list[str]] = {}
    for case in MISUSES:
        with tempfile.TemporaryDirectory() as folder:
            kit = Kit(Path(folder))
            rows.setdefault(case.area, []).append(row(case, outcome(case, kit), Path(folder)))
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
