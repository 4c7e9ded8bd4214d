"""ILoRAConfig: the fields of an instance-wise LoRA and the checks between them."""

import copy
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeGuard, get_args

from peft import LoraConfig
from peft.utils.peft_types import PeftType

NAME = "ILORA"
"""The PEFT type, a member that `peft_ilora/registration.py` adds to the enum `PeftType`."""
GateName = Literal["linear", "mlp", "trunk", "hard"]
GateFormName = Literal["softmax", "sigmoid", "scale", "shift", "scale_shift", "square"]
GateInput = Literal["routing", "token", "prompt"]
GateScope = Literal["shared", "per_module"]
GateInit = Literal["default", "zeros"]
ScalingRank = Literal["expert", "total"]
MissingRouting = Literal["error", "uniform"]

REFUSED = {
    "use_dora": "DoRA renormalises by the norm of one weight, but here every instance has its own",
    "use_qalora": "QA-LoRA pools the input for a merge into group-wise quantised weights, which a "
    "gate per instance rules out",
    "lora_bias": "a bias on B would not pass through the gate",
    "target_parameters": "routing needs a module with a batch of inputs, not a bare parameter",
    "alora_invocation_tokens": "activated LoRA occupies the layer's variant slot",
    "velora_config": "VeLoRA occupies the layer's variant slot",
    "monteclora_config": "MonteCLoRA occupies the layer's variant slot",
    "arrow_config": "Arrow is a routing of its own",
    "use_bdlora": "BD-LoRA's blocks would cut across the experts",
    "kasa_config": "KaSA rewrites the base weight under an ungated update",
    "megatron_config": "Megatron's parallel layers do not consult LoRA variants",
    "loftq_config": "LoftQ's initial update is ungated, so the base output would change",
    "eva_config": "EVA redistributes ranks, which are split into experts here",
    "_custom_modules": "a LoRA layer of one's own is not known to ask for the gated update",
    "corda_config": "CorDA subtracts an ungated update from the base weight",
    "lora_ga_config": "LoRA-GA subtracts an ungated update from the base weight",
}
"""Options of LoRA that have no meaning under a gate, and why."""
_RANKS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
_INITS = ((bool, True), (bool, False), (str, "gaussian"))
_FLAGS = ("fan_in_fan_out", "use_rslora", "ensure_weight_tying", "inference_mode")
_NAMES = {
    "target_modules": "a str (a pattern) or a list of names",
    "exclude_modules": "a str (a pattern) or a list of names",
    "modules_to_save": "a list of names",
    "layers_pattern": "a str or a list of names",
}
_BIASES = ("none", "all", "lora_only")
_FIELDS_OF_THEIR_OWN = {
    "top_k": "; top-k selection is a field of its own: top_k=2",
    "noisy": "; noise is a field of its own: noise_std=1.0",
    "softmax": "; what is made of a gate's logits is a field of its own: gate_form",
    "sigmoid": "; what is made of a gate's logits is a field of its own: gate_form='sigmoid'",
    "scale": "; what is made of a gate's logits is a field of its own: gate_form='scale'",
}


@dataclass
class ILoRAConfig(LoraConfig):
    """Configuration of an instance-wise LoRA (arXiv 2408.10159, Section 3).

    The update of an instance with routing embedding z is
    `dW(z) = scaling * sum_k w_k(z) B_k A_k` with `w(z) = softmax(gate(z) / temperature)`, or what
    another `gate_form` makes of B and A. Fields that are not listed here are LoraConfig's and keep
    their meaning; those without a meaning here are refused.

    Raises:
        ValueError: A field has an impossible value, or LoRA's option cannot be combined with
            routing; the message says why.
    """

    r: int = field(default=4, metadata={"help": "Rank of EACH expert; total: num_experts * r."})
    lora_alpha: float = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=16,
        metadata={
            "help": "Numerator of the scaling. With the default `scaling_rank`, a uniform gate "
            "equals plain LoRA with r=num_experts*r and the same lora_alpha; and so does, at its "
            "start, every gate_form but `softmax`."
        },
    )
    num_experts: int = field(
        default=4,
        metadata={"help": "Experts K; in every gate_form but `softmax` a factor of r."},
    )
    routing_dim: int = field(default=64, metadata={"help": "Width of a routing embedding."})
    expert_ranks: list[int] | None = field(
        default=None,
        metadata={
            "help": "Unequal ranks, one for each expert; takes the place of `r`, which then counts "
            "as their mean."
        },
    )
    gate: GateName = field(
        default="linear",
        metadata={
            "help": "`linear`: softmax(W z), bias-free (the paper). `mlp`: one hidden layer. "
            "`trunk`: one small network that is told the layer and the module, so that each has "
            "a gate of its own. `hard`: routing_embeds are expert ids, int64 [batch]; nothing is "
            "learned."
        },
    )
    gate_form: GateFormName = field(
        default="softmax",
        metadata={
            "help": "What is made of the gate's logits. `softmax`: B diag(w) A, with weights w of "
            "experts (the paper). All others start as plain LoRA and have values for each rank "
            "coordinate: `sigmoid`: B diag(2 sigmoid(s)) A. `scale`: B diag(1 + s) A. `shift`: "
            "B (A x + t). `scale_shift`: both. `square`: B (I + M) A, for small ranks."
        },
    )
    gate_input: GateInput = field(
        default="routing",
        metadata={
            "help": "What the gate reads. `routing`: routing_embeds (the paper). `token`: each "
            "token's hidden state at the layer. `prompt`: the mean input embedding of the prompt; "
            "routing_dim is then the model's embedding width. The last two need no routing_embeds."
        },
    )
    gate_scope: GateScope = field(
        default="shared",
        metadata={"help": "`shared`: one gate for all layers (the paper). `per_module`: one each."},
    )
    gate_init: GateInit = field(
        default="default",
        metadata={
            "help": "`default`: torch's for nn.Linear (the paper's code) where softmax reads a "
            "linear or mlp gate, and zeros otherwise. `zeros`: training starts as plain LoRA, all "
            "experts equal."
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divides the gate's logits: below 1 sharper, above softer."}
    )
    top_k: int | None = field(
        default=None,
        metadata={"help": "Keep each row's k largest weights, renormalised; None: all of them."},
    )
    noise_std: float = field(
        default=0.0,
        metadata={"help": "Gaussian noise on the gate's logits, in training only (noisy gating)."},
    )
    scaling_rank: ScalingRank = field(
        default="expert",
        metadata={
            "help": "`expert`: scaling = lora_alpha / r. `total`: lora_alpha / (num_experts * r), "
            "the paper's literal formula."
        },
    )
    missing_routing: MissingRouting = field(
        default="error",
        metadata={
            "help": "A forward without routing: `error` raises, `uniform` mixes evenly; in a "
            "gate_form without experts it is plain LoRA."
        },
    )
    routing_source: str | None = field(
        default=None,
        metadata={
            "help": "What routing_embeds are and where they come from, in words; the model card of "
            "a saved adapter says it."
        },
    )
    init_from: str | os.PathLike[str] | None = field(
        default=None,
        metadata={
            "help": "Folder of a trained plain LoRA, whose A and B a new adapter starts with: its "
            "gate starts at zero (`gate_init`), so that every instance is that LoRA. Read when the "
            "adapter is made, and neither saved nor read when it is loaded."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME)
        self.check()

    def check(self) -> None:
        """Check the fields and their combinations; called again when a model is adapted.

        Raises:
            ValueError: See the class.
        """
        for name in ("num_experts", "r", "routing_dim"):
            self._check_positive_int(name, getattr(self, name))
        self._check_choice("gate", GateName)
        self._check_choice("gate_form", GateFormName)
        self._check_choice("gate_input", GateInput)
        self._check_choice("gate_scope", GateScope)
        self._check_choice("gate_init", GateInit)
        self._check_choice("scaling_rank", ScalingRank)
        self._check_choice("missing_routing", MissingRouting)
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout!r} must be a number in [0, 1)")
        self._check_alpha("lora_alpha", self.lora_alpha)
        self._check_gate()
        self._check_ranks()
        self._check_trunk()
        self._check_form()
        self._check_start()
        self._check_loras_fields()
        self._refuse_options()

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse a file's fields that this version does not know, unless they are empty.

        PEFT would ignore them with a warning, and the adapter would be another.

        Raises:
            ValueError: There are such fields, or `init_from`.
        """
        if kwargs.get("init_from") is not None:
            raise ValueError(
                f"the configuration has init_from={kwargs['init_from']!r}, which is read when an "
                "adapter is made, and never when one is loaded: take it out of the file"
            )
        known = {spec.name for spec in fields(cls)}
        unknown = {name: value for name, value in kwargs.items() if name not in known and value}
        unknown = {name: value for name, value in unknown.items() if value != "none"}
        if unknown:
            raise ValueError(
                f"the configuration has fields that this version does not know: {unknown}. It was "
                "written by a newer one, or a name is misspelt: upgrade peft-ilora (and peft)"
            )
        return super().check_kwargs(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are saved: all but `init_from`."""
        found = super().to_dict()
        del found["init_from"]
        return found

    @staticmethod
    def _check_alpha(name: str, value: object) -> None:
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be a positive number")

    @staticmethod
    def _check_positive_int(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive int")

    def _check_choice(self, name: str, choices: object) -> None:
        value = getattr(self, name)
        if value not in get_args(choices):
            allowed = ", ".join(map(repr, get_args(choices)))
            hint = _FIELDS_OF_THEIR_OWN.get(value, "") if isinstance(value, str) else ""
            raise ValueError(f"{name}={value!r} must be one of {allowed}{hint}")

    def _check_gate(self) -> None:
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature!r} must be a positive number")
        if not _is_number(self.noise_std) or not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std={self.noise_std!r} must be a number >= 0")
        if self.top_k is not None:
            self._check_positive_int("top_k", self.top_k)
            if self.top_k > self.num_experts:
                raise ValueError(
                    f"top_k={self.top_k} must not exceed num_experts={self.num_experts}"
                )
            self._check_top_one()
        if self.gate == "hard" and self.gate_input != "routing":
            raise ValueError(
                f"gate='hard' takes given expert ids, so gate_input={self.gate_input!r} has "
                "nothing to read: use gate_input='routing'"
            )
        if self.gate == "hard" and (self.top_k, self.noise_std, self.temperature) != (None, 0, 1):
            raise ValueError(
                "gate='hard' picks one expert by its id: top_k, noise_std and temperature must "
                "keep their defaults"
            )
        if self.gate_input == "token" and self.gate_scope == "shared" and self.gate != "trunk":
            raise ValueError(
                "gate_input='token' reads each layer's own input, whose width differs from layer "
                "to layer, so gate_scope='shared' is impossible: use gate_scope='per_module'"
            )

    def _check_top_one(self) -> None:
        """Refuse a gate that could never leave its start."""
        if self.top_k != 1 or self.num_experts == 1 or self.gate_form != "softmax":
            return
        if self.gate == "trunk" or (self.gate != "hard" and self.gate_init == "zeros"):
            start = "gate='trunk'" if self.gate == "trunk" else "gate_init='zeros'"
            raise ValueError(
                f"top_k=1 gives the one expert that is kept a weight of 1, whatever its logit, so "
                f"the gate gets no gradient, and one that starts at zero ({start}) stays there: "
                "every instance would use the same expert. Choose top_k=2 or more, or "
                "gate='linear' or 'mlp' with gate_init='default', which differs by instance from "
                "the start"
            )

    def _check_ranks(self) -> None:
        if not isinstance(self.rank_pattern or {}, dict):
            raise ValueError(f"rank_pattern={self.rank_pattern!r} must be a dict of positive ints")
        for pattern, rank in (self.rank_pattern or {}).items():
            self._check_positive_int(f"rank_pattern[{pattern!r}]", rank)
        if self.expert_ranks is None:
            return
        if not isinstance(self.expert_ranks, (list, tuple)):
            raise ValueError(f"expert_ranks={self.expert_ranks!r} must be a list of positive ints")
        self.expert_ranks = list(self.expert_ranks)
        for index, rank in enumerate(self.expert_ranks):
            self._check_positive_int(f"expert_ranks[{index}]", rank)
        if len(self.expert_ranks) != self.num_experts:
            raise ValueError(
                f"expert_ranks={self.expert_ranks} has {len(self.expert_ranks)} entries but "
                f"num_experts={self.num_experts}: give one rank for each expert"
            )
        if self.rank_pattern:
            raise ValueError(
                "expert_ranks and rank_pattern cannot be combined: both set the ranks of a layer"
            )

    def _check_trunk(self) -> None:
        if self.gate != "trunk":
            return
        if self.gate_input == "token":
            raise ValueError(
                "gate='trunk' is one network for all layers, but gate_input='token' reads each "
                "layer's own input, whose width differs from layer to layer: use gate='linear' or "
                "'mlp' with gate_scope='per_module', or another gate_input"
            )
        if self.gate_scope == "per_module":
            raise ValueError(
                "gate='trunk' is one network for all layers, which tells them apart, so "
                "gate_scope='per_module' is impossible: leave gate_scope at 'shared', or use "
                "gate='linear' or 'mlp'"
            )

    def _check_form(self) -> None:
        """Refuse what has a meaning for weights of experts only."""
        if self.gate_form == "softmax":
            return
        form = f"gate_form={self.gate_form!r}"
        if self.gate == "hard":
            raise ValueError(
                f"gate='hard' weighs one expert, so {form} has nothing to read: use "
                "gate_form='softmax', or a gate that is learned"
            )
        for name, default in {"top_k": None, "noise_std": 0, "temperature": 1}.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} changes the weights of experts, of which "
                    f"{form} has none: leave it at its default, or use gate_form='softmax'"
                )
        if self.scaling_rank == "total":
            raise ValueError(
                f"scaling_rank='total' is the paper's formula for its mixture; {form} always "
                "divides lora_alpha by the total rank, as plain LoRA does: leave scaling_rank at "
                "its default"
            )
        if self.expert_ranks is not None:
            raise ValueError(
                f"expert_ranks={self.expert_ranks} gives experts unequal shares, but {form} has "
                f"no experts: use num_experts=1, r={sum(self.expert_ranks)} for the same total rank"
            )
        if self.rank_pattern and self.gate_scope == "shared" and self.gate != "trunk":
            raise ValueError(
                f"rank_pattern lets ranks differ, but {form} has values for each rank coordinate, "
                f"which one shared gate={self.gate!r} gives to all layers alike: use gate='trunk', "
                "or gate_scope='per_module'"
            )
        if self.gate_form == "square" and self.ensure_weight_tying:
            raise ValueError(
                "ensure_weight_tying=True makes the output layer's adapter that of the input "
                "embedding, transposed, but gate_form='square' puts a matrix between A and B that "
                "is not symmetric: leave ensure_weight_tying at its default, or use "
                "gate_form='scale'"
            )

    def _check_start(self) -> None:
        """Let the gate start at zero where the adapter starts as a LoRA, if it can."""
        if self.init_from is None:
            return
        if not isinstance(self.init_from, (str, os.PathLike)) or not os.fspath(self.init_from):
            raise ValueError(f"init_from={self.init_from!r} must be a folder's path, or None")
        start = f"init_from={os.fspath(self.init_from)!r}"
        if self.gate == "hard":
            raise ValueError(
                f"gate='hard' takes one expert for each instance, so none would start as the LoRA "
                f"of {start}: use a gate that is learned"
            )
        if self.top_k not in (None, self.num_experts):
            raise ValueError(
                f"top_k={self.top_k} leaves experts out, so no instance would start as the LoRA of "
                f"{start}: leave top_k at its default"
            )
        self.gate_init = "zeros"

    def _check_loras_fields(self) -> None:
        """Check what PEFT reads late, or not at all."""
        if self.routing_source is not None and not isinstance(self.routing_source, str):
            raise ValueError(f"routing_source={self.routing_source!r} must be a str, or None")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, wanted in _NAMES.items():
            value = getattr(self, name)
            listed = value if isinstance(value, (list, tuple, set)) else None
            if isinstance(value, str) and "str" in wanted:
                listed = [value]
            if value is not None and (
                listed is None or not all(isinstance(one, str) and one for one in listed)
            ):
                raise ValueError(f"{name}={value!r} must be {wanted}")
        if self.bias not in _BIASES:
            allowed = ", ".join(map(repr, _BIASES))
            raise ValueError(f"bias={self.bias!r} must be one of {allowed}")
        for name in ("target_modules", "exclude_modules"):
            self._check_pattern(name, getattr(self, name))
        self._check_tokens()
        layers = self.layers_to_transform
        for index in layers if isinstance(layers, (list, tuple)) else [layers]:
            if layers is not None and (type(index) is not int or index < 0):
                raise ValueError(
                    f"layers_to_transform={layers!r} must be a layer's index or a list of them"
                )
        if not isinstance(self.alpha_pattern or {}, dict):
            raise ValueError(
                f"alpha_pattern={self.alpha_pattern!r} must be a dict of positive numbers"
            )
        for pattern, alpha in (self.alpha_pattern or {}).items():
            self._check_alpha(f"alpha_pattern[{pattern!r}]", alpha)

    @staticmethod
    def _check_pattern(name: str, value: object) -> None:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{name}={value!r} is no regular expression: {error}") from error

    def _check_tokens(self) -> None:
        tokens = self.trainable_token_indices
        lists = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
        for indices in lists if tokens is not None else ():
            if not isinstance(indices, (list, tuple)) or not all(
                type(index) is int and index >= 0 for index in indices
            ):
                raise ValueError(
                    f"trainable_token_indices={tokens!r} must be a list of token ids, or a dict of "
                    "such lists by module name"
                )

    def _refuse_options(self) -> None:
        for name, reason in REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} cannot be used with iLoRA: {reason}. "
                    "Leave it at its default."
                )
        if (type(self.init_lora_weights), self.init_lora_weights) not in _INITS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r} cannot be used with iLoRA: it "
                "starts from an update B A that is not zero, which the gate would change. "
                f"Use one of {', '.join(repr(init) for _, init in _INITS)}."
            )

    @property
    def total_rank(self) -> int:
        """Return the number of rank coordinates: the rank of the plain LoRA of an instance."""
        return sum(self.expert_ranks or [self.r] * self.num_experts)

    def ranks(self, total: int) -> tuple[int, ...]:
        """Return the ranks of the experts in a layer.

        Args:
            total: The layer's total rank, which `rank_pattern` may set.
        """
        if self.expert_ranks is not None:
            return tuple(self.expert_ranks)
        return (total // self.num_experts,) * self.num_experts

    def alpha_for_total_rank(self, alpha: float) -> float:
        """Return the alpha that, over the total rank, gives the scaling that `alpha` stands for.

        LoRA's layers divide alpha by the total rank (by its root under rsLoRA); with a softmax and
        `scaling_rank="expert"` the mean rank of an expert is meant.
        """
        if self.scaling_rank == "total" or self.gate_form != "softmax":
            return alpha
        return alpha * (math.sqrt(self.num_experts) if self.use_rslora else self.num_experts)

    def to_lora_config(self) -> LoraConfig:
        """Return the plain LoRA that this adapter is for one instance, its gate folded into B.

        Returns:
            A LoraConfig with `r = total_rank` and an alpha of the same scaling. Tied adapters have
            become two, because PEFT's may come apart when they are loaded. The bias on B that an
            instance of `shift` and `scale_shift` has is added by `plain_lora`.
        """
        inherited = {
            spec.name: copy.deepcopy(getattr(self, spec.name))
            for spec in fields(LoraConfig)
            if spec.init and spec.name != "peft_type"
        }
        inherited |= self._total_ranks() | {"ensure_weight_tying": False}
        for name in getattr(self, "target_modules_to_tie", None) or ():
            inherited["target_modules"] = _with_module(inherited["target_modules"], name)
        return LoraConfig(**inherited)

    @contextmanager
    def of_total_rank(self) -> Iterator[None]:
        """Let this configuration have the ranks and alphas of `to_lora_config` for the block.

        PEFT makes a layer from it, and may write onto it what it will read later.
        """
        before = dict(vars(self))
        vars(self).update(self._total_ranks())
        try:
            yield
        finally:
            vars(self).update({name: before[name] for name in _RANKS})

    def _total_ranks(self) -> dict[str, object]:
        patterns = self.rank_pattern or {}, self.alpha_pattern or {}
        alphas = {name: self.alpha_for_total_rank(alpha) for name, alpha in patterns[1].items()}
        return {
            "r": self.total_rank,
            "lora_alpha": self.alpha_for_total_rank(self.lora_alpha),
            "rank_pattern": {name: self.num_experts * rank for name, rank in patterns[0].items()},
            "alpha_pattern": alphas,
        }


def _with_module(target_modules: str | Iterable[str] | None, name: str) -> str | set[str]:
    """Target one more module, by its full name."""
    if isinstance(target_modules, str):
        return rf"(?:{target_modules}|^{re.escape(name)}$)"
    return {*(target_modules or ()), name}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
