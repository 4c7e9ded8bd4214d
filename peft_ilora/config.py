"""ILoRAConfig: the fields of an instance-wise LoRA and the checks between them."""

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from peft import LoraConfig

from peft_ilora.peft_type import peft_type

Gate = Literal["linear", "mlp"]
GateScope = Literal["shared", "per_module"]
ScalingRank = Literal["expert", "total"]
MissingRouting = Literal["error", "uniform"]

_REFUSED = {
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
    "corda_config": "CorDA subtracts an ungated update from the base weight",
    "lora_ga_config": "LoRA-GA subtracts an ungated update from the base weight",
    "layer_replication": "it is untested with routing",
}
_INITS = (True, False, "gaussian")


@dataclass
class ILoRAConfig(LoraConfig):
    """Configuration of an instance-wise LoRA (arXiv 2408.10159, Section 3).

    The update of an instance with routing embedding z is
    `dW(z) = scaling * sum_k w_k(z) B_k A_k` with `w(z) = softmax(gate(z))`. Fields that are not
    listed here are LoraConfig's and keep their meaning; those without a meaning here are refused.

    Raises:
        ValueError: A field has an impossible value, or LoRA's option cannot be combined with
            routing; the message says why.
    """

    r: int = field(default=4, metadata={"help": "Rank of EACH expert; total: num_experts * r."})
    lora_alpha: float = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=16,
        metadata={
            "help": "Numerator of the scaling. With the default `scaling_rank`, a uniform gate "
            "equals plain LoRA with r=num_experts*r and the same lora_alpha."
        },
    )
    num_experts: int = field(default=4, metadata={"help": "Experts K."})
    routing_dim: int = field(default=64, metadata={"help": "Width of a routing embedding."})
    gate: Gate = field(
        default="linear",
        metadata={
            "help": "`linear`: softmax(W z), bias-free (the paper). `mlp`: one hidden layer."
        },
    )
    gate_scope: GateScope = field(
        default="shared",
        metadata={"help": "`shared`: one gate for all layers (the paper). `per_module`: one each."},
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
        metadata={"help": "A forward without routing: `error` raises, `uniform` mixes evenly."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        self._check_positive("num_experts", "r", "routing_dim")
        self._check_choice("gate", Gate)
        self._check_choice("gate_scope", GateScope)
        self._check_choice("scaling_rank", ScalingRank)
        self._check_choice("missing_routing", MissingRouting)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout} must lie in [0, 1)")
        for pattern, rank in (self.rank_pattern or {}).items():
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(
                    f"rank_pattern[{pattern!r}]={rank!r} must be a positive int: "
                    "the rank of each expert"
                )
        self._refuse_options()

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive int")

    def _check_choice(self, name: str, choices: object) -> None:
        if getattr(self, name) not in get_args(choices):
            allowed = ", ".join(map(repr, get_args(choices)))
            raise ValueError(f"{name}={getattr(self, name)!r} must be one of {allowed}")

    def _refuse_options(self) -> None:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} cannot be used with iLoRA: {reason}. "
                    "Leave it at its default."
                )
        if self.init_lora_weights not in _INITS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r} cannot be used with iLoRA: it "
                "starts from an update B A that is not zero, which the gate would change. "
                f"Use one of {', '.join(map(repr, _INITS))}."
            )

    def alpha_for_total_rank(self, alpha: float) -> float:
        """The alpha that, over the total rank, gives the scaling that `alpha` stands for.

        LoRA's layers divide alpha by the total rank (by its root under rsLoRA); with
        `scaling_rank="expert"` the rank of one expert is meant.
        """
        if self.scaling_rank == "total":
            return alpha
        return alpha * (math.sqrt(self.num_experts) if self.use_rslora else self.num_experts)

    def to_lora_config(self) -> LoraConfig:
        """The plain LoRA that this adapter is for one instance, its gate folded into B.

        Returns:
            A LoraConfig with `r = num_experts * r` and an alpha of the same scaling.
        """
        inherited = {
            spec.name: copy.deepcopy(getattr(self, spec.name))
            for spec in fields(LoraConfig)
            if spec.init and spec.name != "peft_type"
        }
        inherited["r"] = self.num_experts * self.r
        inherited["lora_alpha"] = self.alpha_for_total_rank(self.lora_alpha)
        inherited["rank_pattern"] = {
            name: self.num_experts * rank for name, rank in (self.rank_pattern or {}).items()
        }
        inherited["alpha_pattern"] = {
            name: self.alpha_for_total_rank(alpha)
            for name, alpha in (self.alpha_pattern or {}).items()
        }
        return LoraConfig(**inherited)
