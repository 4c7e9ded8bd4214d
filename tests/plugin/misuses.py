"""What can be done wrong, and the exception that answers: a part of docs/errors.md.

`python tests/plugin/misuses.py` writes it; `test_misuses.py` holds it against the code.
"""

import copy
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from conftest import ROUTING_DIM, adapted, tiny_llama
from error_page import write_part

from peft_ilora import ILoRAConfig, RoutingCollator, export_lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ELSEWHERE = "base_model.model.model.layers.7.self_attn.q_proj.ilora_A.weight"
PART = "plugin"


Run = Callable[[Any], Tensor]


@dataclass
class Watched:
    """Something that a misuse acts on, as it was before."""

    thing: Any
    run: Run | None
    """What a model says to a correct call; None where no call is correct."""
    look: Callable[[Any], dict[str, Any]]

    def __post_init__(self) -> None:
        self.state = self.look(self.thing)
        self.output = None if self.run is None else self.run(copy.deepcopy(self.thing))

    def changes(self) -> list[str]:
        """Names of what is no longer as it was."""
        now = self.look(self.thing)
        names = [name for name in self.state.keys() | now.keys() if name not in now]
        names += [name for name, value in now.items() if not same(self.state.get(name), value)]
        if self.run is not None and not same(self.run(self.thing), self.output):
            names.append("what the model says")
        return names


PREPARES = "prepare_inputs_for_generation"
"""PEFT's `generate` sets this attribute to what it is anyway."""


def same(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return before.shape == now.shape and torch.equal(before.nan_to_num(7), now.nan_to_num(7))
    return type(before) is type(now) and before == now


def state_of(thing: Any) -> dict[str, Any]:
    """All that a call could change in a model, a configuration, a folder or other data."""
    if isinstance(thing, Path):
        return {str(file): file.read_bytes() for file in thing.rglob("*") if file.is_file()}
    if isinstance(thing, PeftConfig):
        # PEFT notes the base model's name before it looks at anything else.
        return {k: v for k, v in thing.to_dict().items() if k != "base_model_name_or_path"}
    if not isinstance(thing, nn.Module):
        return {"value": copy.deepcopy(thing)}
    found: dict[str, Any] = {}
    for name, module in thing.named_modules():
        found[f"{name}: class"] = type(module)
        for key, value in vars(module).items():
            if key != PREPARES:
                found[f"{name}: {key}"] = attribute(value)
        found[f"{name}: {PREPARES}"] = getattr(module, PREPARES, None)
    for name, value in [*thing.named_parameters(), *thing.named_buffers()]:
        found[name] = value.detach().clone()
        found[f"{name}: trained"] = value.requires_grad
    for name, config in getattr(thing, "peft_config", {}).items():
        found[f"config of {name}"] = config.to_dict()
    return found


def attribute(value: Any) -> Any:
    """A module's attribute, in a form that compares: hooks and methods by identity."""
    if isinstance(value, dict):  # hooks, or settings by adapter
        return {key: attribute(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(map(attribute, value))
    return value if isinstance(value, bool | int | float | str) else id(value)


@dataclass
class Kit:
    """What a misuse plays with."""

    folder: Path
    ids: Tensor = field(
        default_factory=lambda: torch.arange(3, 24).view(3, 7)  # three rows
    )
    z: Tensor = field(default_factory=lambda: torch.linspace(-1, 1, 24).view(3, ROUTING_DIM))
    watched: list[Watched] = field(default_factory=list)

    def watch(
        self,
        thing: Any,
        run: Run | None = None,
        look: Callable[[Any], dict[str, Any]] = state_of,
    ) -> Any:
        """Remember how something is now, which the misuse must leave as it is."""
        self.watched.append(Watched(thing, run, look))
        return thing

    def changes(self) -> list[str]:
        """What the misuse has left behind."""
        return [name for watched in self.watched for name in watched.changes()]

    @torch.no_grad()
    def says(self, model: Any) -> Tensor:
        """Logits of a Llama, with the routing that its adapter asks for."""
        config, routing = getattr(model.eval(), "peft_config", {}).get("default"), {}
        if isinstance(config, ILoRAConfig) and config.gate_input == "routing":
            hard = config.gate == "hard"
            routing = {"routing_embeds": torch.tensor([2, 0, 1]) if hard else self.z}
        return model(input_ids=self.ids, **routing).logits

    @cached_property
    def model(self) -> PeftModel:
        """A Llama with an iLoRA."""
        return self.adapted()

    def adapted(self, **settings: Any) -> PeftModel:
        """A Llama with an iLoRA of other settings."""
        return self.watch(adapted(**settings), self.says)

    def llama(self) -> Any:
        """A Llama without an adapter."""
        return self.watch(tiny_llama(), self.says)

    def config(self, **fields: Any) -> ILoRAConfig:
        """A configuration to wrap a model with."""
        return self.watch(ILoRAConfig(**{"target_modules": ["q_proj"]} | fields))

    def wrap(self, base: nn.Module, target: str, run: Run, **fields: Any) -> PeftModel:
        """Wrap a model; its configuration is watched too."""
        config = self.config(target_modules=[target], **fields)
        return get_peft_model(self.watch(base.eval(), run), config)

    def wrap_llama(self, target: str, **fields: Any) -> PeftModel:
        return self.wrap(tiny_llama(), target, self.says, **fields)

    def saved(self) -> Path:
        self.model.save_pretrained(self.folder)
        return self.folder

    def load(self) -> PeftModel:
        """Load what lies in the folder."""
        return PeftModel.from_pretrained(self.llama(), self.watch(self.folder))

    def edit_config(self, **fields: Any) -> None:
        path = self.folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@dataclass(frozen=True)
class Misuse:
    """One row of the table."""

    area: str
    title: str
    act: Callable[[Kit], Any]
    constructs: bool = False
    """Whether it only constructs something: there is nothing yet that it could change."""


MISUSES: list[Misuse] = []
_area = ""


def area(name: str) -> None:
    global _area
    _area = name


def misuse(title: str, act: Callable[[Kit], Any]) -> None:
    MISUSES.append(Misuse(_area, title, act))


def config(title: str, **fields: Any) -> None:
    MISUSES.append(Misuse(_area, f"`{title}`", lambda kit: ILoRAConfig(**fields), constructs=True))


def forward(title: str, make: Callable[[Tensor], Any], **settings: Any) -> None:
    def act(kit: Kit) -> None:
        kit.adapted(**settings)(input_ids=kit.ids, routing_embeds=make(kit.z))

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


def few_ids(model: nn.Module) -> Tensor:
    """What a language model of nine tokens says."""
    with torch.no_grad():
        return model(torch.arange(8).view(2, 4))[0]


area("Configuration")
config("num_experts=0", num_experts=0)
config("num_experts=2.5", num_experts=2.5)
config("r=0", r=0)
config("r=True", r=True)
config("routing_dim=-1", routing_dim=-1)
config("gate='softmax'", gate="softmax")
config("gate='top_k'", gate="top_k")
config("gate='noisy'", gate="noisy")
config("gate='scale'", gate="scale")
config("gate_form='film'", gate_form="film")
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
config("gate='trunk', top_k=1", gate="trunk", top_k=1)
config("gate_init='zeros', top_k=1", gate_init="zeros", top_k=1)
config("gate_input='token', gate_scope='shared'", gate_input="token")
config("gate='trunk', gate_scope='per_module'", gate="trunk", gate_scope="per_module")
config("gate='trunk', gate_input='token'", gate="trunk", gate_input="token")
config("gate_form='scale', gate='hard'", gate_form="scale", gate="hard")
config("gate_form='scale', top_k=2", gate_form="scale", top_k=2)
config("gate_form='sigmoid', noise_std=1.0", gate_form="sigmoid", noise_std=1.0)
config("gate_form='sigmoid', temperature=2.0", gate_form="sigmoid", temperature=2.0)
config("gate_form='shift', scaling_rank='total'", gate_form="shift", scaling_rank="total")
config("gate_form='scale', expert_ranks=[8, 4, 2, 2]", gate_form="scale", expert_ranks=[8, 4, 2, 2])
config(
    "gate_form='scale', rank_pattern={'q_proj': 2}", gate_form="scale", rank_pattern={"q_proj": 2}
)
config("gate_form='square', ensure_weight_tying=True", gate_form="square", ensure_weight_tying=True)
config("lora_dropout=1.5", lora_dropout=1.5)
config("lora_dropout='0.1'", lora_dropout="0.1")
config("lora_alpha='16'", lora_alpha="16")
config("rank_pattern=[3]", rank_pattern=[3])
config("use_dora=True", use_dora=True)
config("lora_bias=True", lora_bias=True)
config("init_lora_weights='pissa'", init_lora_weights="pissa")
config("target_parameters=['w']", target_parameters=["w"])
config("use_rslora='yes'", use_rslora="yes")
config("lora_alpha=-1", lora_alpha=-1)
config("lora_alpha=float('nan')", lora_alpha=float("nan"))
config("alpha_pattern={'q_proj': 'high'}", alpha_pattern={"q_proj": "high"})
config("temperature=float('nan')", temperature=float("nan"))
config("noise_std=float('inf')", noise_std=float("inf"))
config("bias='some'", bias="some")
config("target_modules=[0, 1]", target_modules=[0, 1])
config("target_modules=['']", target_modules=[""])
config("modules_to_save='lm_head'", modules_to_save="lm_head")
config("layers_to_transform=[-1]", layers_to_transform=[-1])
config("init_lora_weights='nonsense'", init_lora_weights="nonsense")
config("arrow_config={}", arrow_config={})
config("target_modules='('", target_modules="(")
config("trainable_token_indices=['a']", trainable_token_indices=["a"])
config("routing_source=3", routing_source=3)
config("init_from=3", init_from=3)
config("init_from='lora', gate='hard'", init_from="lora", gate="hard")
config("init_from='lora', top_k=2", init_from="lora", top_k=2)

area("Wrapping a model")


def changed_later(name: str, value: Any) -> Callable[[Kit], Any]:
    def act(kit: Kit) -> None:
        config = ILoRAConfig(target_modules=["q_proj"])
        setattr(config, name, value)
        get_peft_model(kit.llama(), kit.watch(config))

    return act


def own_layer(kit: Kit) -> None:
    config = ILoRAConfig(target_modules=["q_proj"])
    config._register_custom_module({nn.Linear: nn.Linear})
    get_peft_model(kit.llama(), kit.watch(config))


def target(title: str, make: Callable[[], nn.Module], name: str, run: Run, **fields: Any) -> None:
    def act(kit: Kit) -> None:
        torch.manual_seed(0)
        kit.wrap(make(), name, run, **fields)

    misuse(title, act)


misuse(
    "an option set after construction: `config.use_dora = True`", changed_later("use_dora", True)
)
misuse("a LoRA layer class of one's own", own_layer)
misuse("no such target module", lambda kit: kit.wrap_llama("nothing"))
target(
    "target: MultiheadAttention",
    lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
    "0",
    lambda model: model[0](*[torch.ones(2, 1, 4)] * 3)[0],
)
target(
    "target: an expert of a mixture",
    Experts,
    "expert_0",
    lambda model: model.experts["expert_0"](torch.ones(1, 2)),
)
target(
    "target: inside TransformerEncoderLayer",
    lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4)),
    "linear1",
    lambda model: model(torch.eye(4)[None]),
)
target(
    "target: a convolution whose groups do not divide r",
    lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)),
    "0",
    lambda model: model(torch.ones(1, 4, 5)),
    r=3,
)
target(
    "target: a convolution of groups, with gate_form='square'",
    lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)),
    "0",
    lambda model: model(torch.ones(1, 4, 5)),
    gate_form="square",
)
target(
    "target: a norm",
    lambda: nn.Sequential(nn.LayerNorm(4)),
    "0",
    lambda model: model(torch.eye(4)),
)
misuse(
    "target: an embedding, with token routing",
    lambda kit: kit.wrap_llama("embed_tokens", gate_input="token", gate_scope="per_module"),
)
misuse(
    "prompt routing with another width than the model's",
    lambda kit: kit.wrap_llama("q_proj", gate_input="prompt"),
)
target(
    "prompt routing of a model without embeddings",
    lambda: nn.Sequential(nn.Linear(2, 2)),
    "0",
    lambda model: model(torch.ones(1, 2)),
    gate_input="prompt",
)
misuse(
    "a base model that is wrapped already",
    lambda kit: get_peft_model(kit.model.get_base_model(), kit.config()),
)
misuse(
    "a base model with a plain LoRA",
    lambda kit: get_peft_model(
        kit.watch(get_peft_model(tiny_llama(), LoraConfig()).get_base_model(), kit.says),
        kit.config(),
    ),
)
misuse(
    "a LoRA put over an iLoRA's base model",
    lambda kit: kit.says(
        get_peft_model(adapted().get_base_model(), kit.watch(LoraConfig(target_modules=["q_proj"])))
    ),
)
misuse(
    "a PeftModel, wrapped a second time",
    lambda kit: get_peft_model(kit.model, kit.config()),
)
target("a Mamba's projections", mamba, "x_proj", few_ids)
target("a sequence-first model", xlnet, "layer_1", few_ids)
target(
    "a sequence-first model inside of another module",
    lambda: nn.Sequential(xlnet()),
    "layer_1",
    few_ids,
)
misuse("`PeftMixedModel`", lambda kit: PeftMixedModel(kit.llama(), kit.config()))
misuse("`inject_adapter_in_model`", lambda kit: inject_adapter_in_model(kit.config(), kit.llama()))
misuse(
    "a LoRA beside the iLoRA", lambda kit: kit.model.add_adapter("lora", kit.watch(LoraConfig()))
)
misuse(
    "`transformers_model.load_adapter(folder)`",
    lambda kit: kit.llama().load_adapter(kit.watch(kit.saved())),
)

area("Starting from a trained LoRA")


def starting(title: str, theirs: dict[str, Any], **ours: Any) -> None:
    """Wrap a model with an iLoRA that starts from a LoRA of other settings."""

    def act(kit: Kit) -> None:
        saved_lora(kit, **theirs)
        config = kit.config(**{"init_from": str(kit.watch(kit.folder))} | ours)
        get_peft_model(kit.llama(), config)

    misuse(title, act)


def saved_lora(kit: Kit, **fields: Any) -> Path:
    """Save a LoRA of rank 16 whose scaling is the iLoRA's at its start."""
    settings = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"]}
    get_peft_model(tiny_llama(), LoraConfig(**settings | fields)).save_pretrained(kit.folder)
    return kit.folder


def start_from(kit: Kit, **options: Any) -> None:
    config = kit.config(init_from=str(kit.watch(kit.folder)))
    get_peft_model(kit.llama(), config, **options)


def start_from_a_pickle(kit: Kit) -> None:
    (saved_lora(kit) / WEIGHTS).rename(kit.folder / "adapter_model.bin")
    start_from(kit)


def start_from_another_method(kit: Kit) -> None:
    saved_lora(kit)
    kit.edit_config(peft_type="LOHA")
    start_from(kit)


def start_from_an_ilora(kit: Kit) -> None:
    kit.saved()
    start_from(kit)


def start_without_values(kit: Kit) -> None:
    saved_lora(kit)
    start_from(kit, low_cpu_mem_usage=True)


def start_written_down(kit: Kit) -> None:
    kit.saved()
    kit.edit_config(init_from="lora")
    kit.load()


misuse(
    "`init_from` of a name on the Hub",
    lambda kit: get_peft_model(kit.llama(), kit.config(init_from="user/lora")),
)
misuse("`init_from` of a pickle", start_from_a_pickle)
misuse("`init_from` of another method's adapter", start_from_another_method)
misuse("`init_from` of an iLoRA", start_from_an_ilora)
starting("`init_from` of a DoRA", {"use_dora": True})
starting("`init_from` of a LoRA with biases on B", {"lora_bias": True})
starting("`init_from` of another rank", {"r": 8})
starting("`init_from` of another scaling", {"lora_alpha": 32})
starting("`init_from` with another `use_rslora`", {"use_rslora": True})
starting("`init_from` with other target modules", {"target_modules": ["q_proj", "v_proj"]})
starting("`init_from` with `modules_to_save`", {"modules_to_save": ["lm_head"]})
misuse("`init_from` with `low_cpu_mem_usage=True`", start_without_values)
misuse("`init_from` in the file of a saved adapter", start_written_down)

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
    model = adapted()
    model.add_adapter("other", ILoRAConfig(**settings | fields))
    model.base_model.set_adapter(["default", "other"])

    def one_alone(model: PeftModel) -> Tensor:
        model.set_adapter("default")
        return kit.says(model)

    kit.watch(model, one_alone)(input_ids=kit.ids, routing_embeds=kit.z)


def prompted(kit: Kit) -> PeftModel:
    return kit.adapted(gate_input="prompt", routing_dim=32)


def continued(kit: Kit) -> None:
    model = prompted(kit)
    cache = model(input_ids=kit.ids, use_cache=True).past_key_values
    model(input_ids=kit.ids[:, :1], past_key_values=cache)


def context_without_values(kit: Kit) -> None:
    with kit.model.routing(kit.z.to("meta")):
        pass


def doubled(kit: Kit) -> None:
    def loop(model: Any, input_ids: Tensor, **settings: Any) -> Tensor:
        return model(input_ids=torch.cat([input_ids, input_ids])).logits

    kit.model.generate(input_ids=kit.ids, routing_embeds=kit.z, custom_generate=loop)


class Gathered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(0, 1)[:5])


def gathered(kit: Kit) -> None:
    torch.manual_seed(0)
    config = ILoRAConfig(target_modules=["fc"], routing_dim=8)
    model = kit.watch(
        get_peft_model(Gathered(), config),
        lambda model: model(torch.ones(5, 1, 4), routing_embeds=torch.ones(5, 8)),
    )
    model(torch.ones(3, 5, 4), routing_embeds=kit.z)


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
    gathered,
)
misuse("a context on the meta device", context_without_values)
misuse("`custom_generate` that doubles the batch", doubled)
misuse("`generate_batch`", lambda kit: kit.model.generate_batch(inputs=kit.ids.tolist()))
misuse(
    "prompt routing where labels leave no prompt",
    lambda kit: prompted(kit)(input_ids=kit.ids, labels=kit.ids),
)
misuse("prompt routing of a continued sequence", continued)
misuse(
    "prompt routing in training without labels",
    lambda kit: kit.watch(adapted(gate_input="prompt", routing_dim=32).train(), kit.says)(
        input_ids=kit.ids
    ),
)

area("Adapters, merging, export")


def routed_when_merged(kit: Kit) -> None:
    model = adapted()
    model.merge_adapter(routing_embeds=kit.z[:1])
    kit.watch(model, lambda model: model(input_ids=kit.ids).logits)
    model(input_ids=kit.ids, routing_embeds=kit.z)


def broken_weights(kit: Kit) -> None:
    weight = kit.model.get_base_model().model.layers[1].mlp.down_proj.lora_B["default"].weight
    before = weight.data.clone()
    weight.data[0] = torch.nan
    try:
        kit.model.merge_adapter(safe_merge=True, routing_embeds=kit.z[:1])
    finally:
        weight.data = before


def merge_of_a_tied_layer(kit: Kit) -> None:
    config = ILoRAConfig(target_modules=["lm_head"], routing_dim=ROUTING_DIM)
    model = get_peft_model(tiny_llama(tie_word_embeddings=True), config)
    kit.watch(model, kit.says).merge_adapter(routing_embeds=kit.z[:1])


def merge_into_pruned(kit: Kit) -> None:
    model = adapted()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    prune.random_unstructured(layer.get_base_layer(), "weight", 0.5)
    kit.watch(model).merge_and_unload(routing_embeds=kit.z[:1])


def load_into_pruned(kit: Kit) -> None:
    kit.saved()
    model = adapted()
    prune.random_unstructured(model.base_model.ilora_gate["default"].project, "weight", 0.5)
    kit.watch(model).load_adapter(kit.watch(kit.folder), "default")


def hotswap_prepared(kit: Kit) -> None:
    model = adapted()
    prepare_model_for_compiled_hotswap(model, target_rank=32)
    kit.watch(model)(input_ids=kit.ids, routing_embeds=kit.z)


def no_gradients(kit: Kit) -> None:
    model = kit.adapted(gate_input="token", gate_scope="per_module")
    with torch.no_grad():
        model(input_ids=kit.ids)
    model.routing_losses()


misuse("merge without an instance", lambda kit: kit.model.merge_and_unload())
misuse("merge of three instances", lambda kit: kit.model.merge_adapter(routing_embeds=kit.z))
misuse(
    "merge of token routing",
    lambda kit: kit.adapted(gate_input="token", gate_scope="per_module").merge_and_unload(),
)
misuse(
    "merge of replicated layers",
    lambda kit: kit.adapted(layer_replication=[(0, 2), (1, 2)]).merge_and_unload(
        routing_embeds=kit.z[:1]
    ),
)
misuse("safe merge of broken weights", broken_weights)
misuse(
    "merge of a shift into a layer without a bias",
    lambda kit: kit.adapted(gate_form="shift").merge_and_unload(routing_embeds=kit.z[:1]),
)
misuse("merge for a while of one of two tied layers", merge_of_a_tied_layer)
misuse("merge into a pruned base weight", merge_into_pruned)
misuse("load into a pruned adapter", load_into_pruned)
misuse(
    "tied adapters of different ranks",
    lambda kit: get_peft_model(
        kit.watch(tiny_llama(tie_word_embeddings=True), kit.says),
        kit.config(
            target_modules=["embed_tokens"], ensure_weight_tying=True, rank_pattern={"lm_head": 2}
        ),
    ),
)
misuse("routing of a merged model", routed_when_merged)
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
    lambda kit: kit.watch(adapted().train(), kit.says)(
        input_ids=kit.ids, routing_embeds=kit.z, adapter_names=["default"] * 3
    ),
)
misuse(
    "a mixed batch of adapters on embeddings",
    lambda kit: kit.adapted(target_modules=["embed_tokens"])(
        input_ids=kit.ids, routing_embeds=kit.z, adapter_names=["default"] * 3
    ),
)
misuse("statistics before a forward", lambda kit: kit.adapted().routing_statistics())
misuse("routing losses of a forward without gradients", no_gradients)
misuse(
    "hot-swapping",
    lambda kit: hotswap_adapter(kit.model, str(kit.watch(kit.saved())), "default"),
)
misuse("hot-swapping, prepared", hotswap_prepared)


def exporting(title: str, model: Callable[[Kit], Any], rows: int = 1, **options: Any) -> None:
    def act(kit: Kit) -> None:
        export_lora(model(kit), kit.z[:rows], kit.watch(kit.folder), **options)

    misuse(title, act)


exporting(
    "export of a plain LoRA",
    lambda kit: kit.watch(get_peft_model(tiny_llama(), LoraConfig()), kit.says),
)
exporting("export of two instances", lambda kit: kit.model, rows=2)
exporting(
    "export of an adapter with `modules_to_save`",
    lambda kit: kit.adapted(modules_to_save=["lm_head"]),
)
exporting(
    "export of a shift of an embedding",
    lambda kit: kit.adapted(target_modules=["embed_tokens"], gate_form="shift"),
)
exporting("export of an unknown adapter", lambda kit: kit.model, adapter_name="nobody")

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


def reconfigured(kit: Kit, **fields: Any) -> Kit:
    kit.saved()
    kit.edit_config(**fields)
    return kit


def lora_file(kit: Kit) -> None:
    kit.saved()
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    lora.save_pretrained(kit.folder / "lora")
    shutil.copy(kit.folder / "lora" / WEIGHTS, kit.folder / WEIGHTS)
    kit.load()


def collate(features: list[dict[str, Any]]) -> Callable[[Kit], Any]:
    return lambda kit: RoutingCollator(lambda rest: {"rows": len(rest)})(kit.watch(features))


def replaced(name: str, content: bytes | None) -> Callable[[Kit], Any]:
    """Put something else in a file's place, or nothing."""

    def act(kit: Kit) -> None:
        path = kit.saved() / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        kit.load()

    return act


def only_a_pickle(kit: Kit) -> None:
    (kit.saved() / WEIGHTS).rename(kit.folder / "adapter_model.bin")
    kit.load()


def second_adapter(kit: Kit) -> None:
    path = kit.saved() / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    kit.model.load_adapter(kit.watch(kit.folder), "second")


def renamed_trunk(kit: Kit) -> None:
    adapted(gate="trunk", target_modules=["q_proj", "o_proj"]).save_pretrained(kit.folder)
    mapping = {"q_proj": "o_proj", "o_proj": "q_proj"}
    PeftModel.from_pretrained(kit.llama(), kit.watch(kit.folder), key_mapping=mapping)


misuse("a trunk whose modules are renamed to another order", renamed_trunk)
misuse("a truncated file", truncated)
misuse("a truncated file, loaded as a second adapter", second_adapter)
misuse("an empty file", replaced(WEIGHTS, b""))
misuse("a pickle in the file's place", replaced(WEIGHTS, b"PK\x03\x04" + bytes(60)))
misuse("a git-lfs pointer", replaced(WEIGHTS, b"version https://git-lfs.github.com/spec/v1"))
misuse("a web page", replaced(WEIGHTS, b"<!doctype html>"))
misuse("no weights", replaced(WEIGHTS, None))
misuse("a pickle only, `adapter_model.bin`", only_a_pickle)
misuse(
    "`save_pretrained(safe_serialization=False)`",
    lambda kit: kit.model.save_pretrained(kit.watch(kit.folder), safe_serialization=False),
)
misuse("an empty `adapter_config.json`", replaced(CONFIG, b""))
misuse("a truncated `adapter_config.json`", replaced(CONFIG, b'{"num_experts": 4, "peft_'))
misuse("a list as `adapter_config.json`", replaced(CONFIG, b"[]"))
misuse(
    "a plain LoRA's config with an iLoRA's weights",
    lambda kit: reconfigured(kit, peft_type="LORA").load(),
)
misuse(
    "the config has a field of a newer version",
    lambda kit: reconfigured(kit, gate_norm="layer").load(),
)
misuse("NaN in the weights", rewritten(lambda s: {k: v * torch.nan for k, v in s.items()}))
misuse("integers as weights", rewritten(lambda s: {k: v.int() for k, v in s.items()}))
misuse("a tensor too many", rewritten(lambda s: s | {ELSEWHERE: torch.zeros(2)}))
misuse("a tensor is missing", rewritten(lambda s: {k: v for k, v in s.items() if "gate" not in k}))
misuse("a foreign safetensors file", rewritten(lambda s: {"weight": torch.zeros(2)}))
misuse("another shape", rewritten(lambda s: {k: v[:1].contiguous() for k, v in s.items()}))
misuse("a plain LoRA's weights with an iLoRA's config", lora_file)
misuse(
    "the config has another gate than the weights",
    lambda kit: reconfigured(kit, gate="mlp").load(),
)
misuse(
    "the config names an impossible value",
    lambda kit: reconfigured(kit, temperature=-1).load(),
)
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
    """The part of docs/errors.md."""
    count = sum(map(len, rows.values()))
    lines = [
        f"{count} things that can be done wrong and the exception that answers. Each row is a test "
        "(`tests/plugin/test_misuses.py`), and the part is written by "
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
    write_part(PART, page(rows))


if __name__ == "__main__":
    main()
