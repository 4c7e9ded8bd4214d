"""iLoRA (arXiv 2408.10159): a gate reads the user's representation and mixes experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peft import TaskType

from peft_ilora import ILoRAConfig
from recipes.about import About
from recipes.experiment import Experiment, GatedSettings
from recipes.llm.adapter_plan import AdapterPlan, RoutedBy
from recipes.methods.adapter import SOURCE, AdapterMethod, refuse_both
from recipes.methods.method import Arm
from recipes.methods.settings import positive_int
from recipes.run import Run

ROUTED_BY: dict[str, RoutedBy | None] = {"routing": "vector", "prompt": "prompt", "token": None}
"""`gate_input` -> what is passed as `routing_embeds`. Token gates read hidden states instead, so
nothing is passed to them."""


class ILoRA(AdapterMethod):
    """A gated mixture of K experts of rank `rank / K` each.

    An expert's update is scaled by `lora_alpha / (rank / K)` times its gate weight. Under a uniform
    gate, whose weights are 1 / K, this is LoRA's `lora_alpha / rank`, so the same alpha has the
    same effect in both.
    """

    name = "ilora"
    summary = "instance-wise LoRA: a gate mixes experts by the user's vector"
    about = About(
        title="iLoRA",
        meaning="instance-wise LoRA: a gate reads the user's representation and mixes experts of "
        "the same total rank",
        order=70,
        ranks_by="likelihood",
        colour="#D55E00",
    )
    Config = GatedSettings
    Peft = ILoRAConfig
    derived = AdapterMethod.derived | {"routing_dim"}

    def with_total_rank(
        self, experiment: Experiment, given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The given settings, with the total `rank` in place of `r`, the rank of each expert.

        From `expert_ranks`, which is kept, follow the total rank and the number of experts.

        Raises:
            ValueError: More than one of `rank`, `r` and `expert_ranks` is given, or `expert_ranks`
                is not a list of integers.
        """
        refuse_both(self.name, given, ("rank", "r", "expert_ranks"))
        values = dict(given)
        if "expert_ranks" in values:
            ranks = values["expert_ranks"]
            if not isinstance(ranks, (list, tuple)) or not all(isinstance(r, int) for r in ranks):
                raise ValueError(
                    f"method {self.name}: expert_ranks={ranks!r} must be a list of ints"
                )
            values = {"num_experts": len(ranks), "rank": sum(ranks)} | values
        experts = values.get("num_experts", experiment.adapt.num_experts)
        experts = self.fixed.get("num_experts", experts)
        if "r" in values:
            own = {"r": values.pop("r"), "num_experts": experts}
            rank, count = (positive_int(f"method {self.name}", *pair) for pair in own.items())
            values["rank"] = rank * count
        return values

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> ILoRAConfig:
        """Configuration of iLoRA with the total rank `rank`."""
        rank, experts, options = (settings[name] for name in ("rank", "num_experts", "options"))
        source = self.routing_source(settings) if _routed_by(settings) == "vector" else None
        if options.get("gate") == "hard" and "gate" not in self.fixed_options:
            raise ValueError(
                f"method {self.name}: gate='hard' takes expert ids, which no recommender gives: "
                "choose `linear`, `mlp` or `trunk`, or the method gate-hard"
            )
        if rank % experts and "expert_ranks" not in options:
            raise ValueError(
                f"adapt.rank={rank} is not divisible by adapt.num_experts={experts}: each expert "
                "has rank / num_experts, so that the total rank equals LoRA's"
            )
        return ILoRAConfig(
            num_experts=experts,
            r=max(1, rank // experts),
            lora_alpha=settings["lora_alpha"],
            lora_dropout=settings["lora_dropout"],
            target_modules=settings["target_modules"],
            routing_dim=routing_dim,
            task_type=TaskType.CAUSAL_LM,
            **{"routing_source": source} | options,
        )

    def routing_source(self, settings: Mapping[str, Any]) -> str:
        """What the vectors are that route the adapter, for the model card."""
        return f"user representations of {settings[SOURCE]}, standardised"

    def reads_prompt(self, settings: Mapping[str, Any]) -> bool:
        """Whether the gate reads the prompt's embeddings."""
        return _routed_by(settings) == "prompt"

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """The plan of a routed adapter whose gate has a learning rate of its own."""
        plan = super().plan(run, arm, seed)
        settings = plan.settings
        assert isinstance(settings, GatedSettings)
        if self.reads_prompt(arm.settings):
            width = run.llm.base.get_input_embeddings().get_parameter("weight").shape[1]
            plan = replace(plan, peft=self.placed_config(run, arm, width))
        return replace(
            plan,
            routed_by=_routed_by(arm.settings),
            gate_learning_rate_scale=settings.gate_learning_rate_scale,
        )


def _routed_by(settings: Mapping[str, Any]) -> RoutedBy | None:
    return ROUTED_BY[settings["options"].get("gate_input", "routing")]
