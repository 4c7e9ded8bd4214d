"""iLoRA (arXiv 2408.10159): a gate reads the user's representation and mixes experts."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import TaskType

from peft_ilora import ILoRAConfig
from recipes.about import About
from recipes.artifacts import read_json, write_json
from recipes.experiment import Experiment, GatedSettings
from recipes.llm.adapter_plan import AdapterPlan, RoutedBy
from recipes.llm.train_adapter import training_rows
from recipes.methods.adapter import SOURCE, AdapterMethod, refuse_both
from recipes.methods.expert_ranks import COUNTS, Clustering, best, clusterings
from recipes.methods.method import Arm, arm_folder
from recipes.methods.settings import positive_int
from recipes.run import Run

ROUTED_BY: dict[str, RoutedBy | None] = {"routing": "vector", "prompt": "prompt", "token": None}
"""`gate_input` -> what is passed as `routing_embeds`. Token gates read hidden states instead, so
nothing is passed to them."""
RANKS, CLUSTERS = "expert_ranks", "clusters"
"""Setting of the experts' ranks, and its value that makes experts of clusters of train windows:
their number is that with the highest silhouette, their ranks follow from the clusters' sizes, and
their sum is `rank` (`expert_ranks.py`)."""
FEWEST = min(COUNTS)
"""Fewest experts that clusters make."""
CLUSTERS_FILE = "clusters.json"
"""Of an arm with such experts: `source`, the recommender, and `clusterings`, see `Clustering`."""


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

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """As of every adapter; a number of experts that follows from clusters is not known yet."""
        settings = super().configure(experiment, given)
        return {**settings, "num_experts": None} if follows_clusters(settings) else settings

    def with_total_rank(
        self, experiment: Experiment, given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The given settings, with the total `rank` in place of `r`, the rank of each expert.

        From `expert_ranks`, which is kept, follow the total rank and the number of experts.

        Raises:
            ValueError: More than one of `rank`, `r` and `expert_ranks` is given, or `expert_ranks`
                is neither a list of integers nor `clusters`, or that is not possible.
        """
        if given.get(RANKS) == CLUSTERS:
            self.check_clusters(experiment, given)
            return given
        refuse_both(self.name, given, ("rank", "r", "expert_ranks"))
        values = dict(given)
        if "expert_ranks" in values:
            ranks = values["expert_ranks"]
            listed = isinstance(ranks, (list, tuple)) and len(ranks) > 0
            if not listed or not all(isinstance(rank, int) for rank in ranks):
                raise ValueError(
                    f"method {self.name}: expert_ranks={ranks!r} must be a list of ints, or "
                    f"`{CLUSTERS}`"
                )
            values = {"num_experts": len(ranks), "rank": sum(ranks)} | values
        experts = values.get("num_experts", experiment.adapt.num_experts)
        experts = self.fixed.get("num_experts", experts)
        if "r" in values:
            own = {"r": values.pop("r"), "num_experts": experts}
            rank, count = (positive_int(f"method {self.name}", *pair) for pair in own.items())
            values["rank"] = rank * count
        return values

    def check_clusters(self, experiment: Experiment, given: Mapping[str, Any]) -> None:
        """Refuse what experts from clusters cannot be combined with (ValueError)."""
        told = f"method {self.name}: {RANKS}={CLUSTERS!r}"
        for name in ("num_experts", "r"):
            if name in given:
                raise ValueError(
                    f"{told} finds the number of experts and their ranks, so {name}="
                    f"{given[name]!r} has no place: leave it out, and give the total `rank`"
                )
        form = {**self.fixed_options, **given}.get("gate_form", "softmax")
        if form != "softmax":
            raise ValueError(f"{told}: gate_form={form!r} has no experts: leave it out")
        top_k = given.get("top_k")
        if isinstance(top_k, int) and top_k > FEWEST:
            raise ValueError(
                f"{told} may find as few as {FEWEST} experts, so top_k={top_k} has no place: "
                f"choose {FEWEST}, or leave it out"
            )
        rank = given.get("rank", experiment.adapt.rank)
        if positive_int(f"method {self.name}", "rank", rank) < 2:
            raise ValueError(f"{told}: rank={rank} is too small for two experts: raise it")

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> ILoRAConfig:
        """Configuration of iLoRA with the total rank `rank`.

        Experts from clusters, which are not known before the recommender is trained, are two here,
        as few as there may be; `plan` has the real ones.
        """
        if follows_clusters(settings):
            settings = with_ranks(settings, [settings["rank"] - 1, 1])
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

    def clusterings(self, run: Run, arm: Arm) -> list[Clustering]:
        """What the arm's experts are chosen among, if they follow from clusters.

        Raises:
            ValueError: The train windows do not fall into two clusters.
        """
        rows = training_rows(run.data.split("train"), self.settings_of(arm))
        known = run.vectors(arm.settings[SOURCE]).users["train"]
        return clusterings(known[rows], arm.settings["rank"])

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Train the adapter and the projector; experts from clusters are found first."""
        if follows_clusters(arm.settings):
            path = folder / CLUSTERS_FILE
            if not path.exists():  # else a killed training has found them
                found = [asdict(one) for one in self.clusterings(run, arm)]
                write_json(path, {"source": arm.settings[SOURCE], "clusterings": found})
            arm = _with_experts(arm, path)
        super().train(run, arm, seed, folder)

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """The plan of a routed adapter whose gate has a learning rate of its own.

        Experts from clusters are those that it was trained with: K-means need not find the same
        ones on another machine.
        """
        if follows_clusters(arm.settings):
            arm = _with_experts(arm, arm_folder(run, arm, seed) / CLUSTERS_FILE)
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


def follows_clusters(settings: Mapping[str, Any]) -> bool:
    """Whether experts and their ranks follow from clusters of train windows."""
    return settings["options"].get(RANKS) == CLUSTERS


def with_ranks(settings: Mapping[str, Any], ranks: list[int]) -> dict[str, Any]:
    """An arm's settings with these experts in place of those from clusters."""
    options = {**settings["options"], RANKS: ranks}
    return {**settings, "num_experts": len(ranks), "options": options}


def _with_experts(arm: Arm, clusters: Path) -> Arm:
    """The arm with the experts of the best clusters in a `clusters.json`."""
    found = [Clustering(**one) for one in read_json(clusters)["clusterings"]]
    return replace(arm, settings=with_ranks(arm.settings, best(found).ranks))


def _routed_by(settings: Mapping[str, Any]) -> RoutedBy | None:
    return ROUTED_BY[settings["options"].get("gate_input", "routing")]
