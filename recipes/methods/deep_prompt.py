"""Deep prompts: keys and values in every layer that are made of the user's vector, beside a LoRA.

They stand to `lora-user-slot` as prefix tuning (arXiv 2101.00190) stands to one soft token, and
reach every layer, as a gate does (HyperPrompt, arXiv 2203.00759, makes its own of a task's vector).
"""

from dataclasses import dataclass, replace
from functools import partial

from recipes.about import About
from recipes.experiment import AdapterSettings
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.prefix import check_prefix
from recipes.llm.user_prefix import user_prefix
from recipes.methods.lora import LoRA
from recipes.methods.method import Arm
from recipes.ranges import Count
from recipes.run import Run


@dataclass(kw_only=True)
class DeepPromptSettings(AdapterSettings):
    """Further settings of deep prompts."""

    prefix_tokens: Count = 1
    """Number of keys, and of values, in each layer that has an adapter."""


class DeepPrompt(LoRA):
    """The same LoRA, and a network with one hidden layer of the recommender's width d.

    For n keys and values of width w in L layers the network has `d^2 + d` parameters below and
    `(d + 1) 2 n L w` above. They are counted with the projector, and learn at its rate, with its
    weight decay. The user's prefix is there in every batch, as what a gate reads is.
    """

    name = "deep-prompt"
    summary = "LoRA, and in every layer keys and values made of the user's vector"
    about = About(
        title="LoRA + deep prompt",
        meaning="the same LoRA, with keys and values in every layer that are made of the user's "
        "representation",
        order=62,
        ranks_by="likelihood",
        colour="#009E73",
        line=(0, (1, 1)),
    )
    Config = DeepPromptSettings
    puts_prefix = True
    derived = LoRA.derived | {"layers_to_transform", "layers_pattern"}  # `last_layers` says it

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """The plan of a LoRA with a prefix beside it."""
        plan, tokens = super().plan(run, arm, seed), arm.settings["prefix_tokens"]
        prefix = partial(
            user_prefix,
            recommender_width=self.routing_dim(run, arm),
            tokens=tokens,
            last_layers=plan.settings.last_layers,
        )
        return replace(plan, prefix=prefix)

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse also a language model whose layers cannot be given a prefix."""
        check_prefix(run.outline.model, run.outline.name)
        super().check(run, arm)
