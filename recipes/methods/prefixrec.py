"""PrefixRec: prefix tuning (arXiv 2101.00190) on the text prompt, for all users alike.

The iLoRA paper compares with it by that name, and neither says which prompt it has nor how long the
prefix is. Here it has TALLRec's prompt, so that the two differ by the adapter alone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from peft import PeftConfig, PrefixTuningConfig, TaskType

from recipes.about import About
from recipes.llm.frozen_prefix import num_layers
from recipes.llm.prefix import check_prefix
from recipes.methods.adapter import AdapterMethod
from recipes.methods.method import Arm
from recipes.methods.settings import positive_int
from recipes.run import Run

TOKENS = "num_virtual_tokens"
DEFAULT_TOKENS = 20


class PrefixRec(AdapterMethod):
    """PEFT's prefix tuning: keys and values in every layer, or in the last ones.

    The prefix is made, saved and loaded by PEFT, and has `num_virtual_tokens` times 2 times the
    width of a layer's keys as parameters in each layer: far fewer than a LoRA of rank 16. It enters
    the model as `recipes/llm/prefix.py` says; PEFT's own forward would begin the prompt at position
    `num_virtual_tokens`, and put a prefix of the last layers into the first ones.
    """

    name = "prefixrec"
    summary = "prefix tuning with the text prompt: no recommender's vectors, no LoRA"
    about = About(
        title="PrefixRec",
        meaning="prefix tuning on the prompt as plain text: learned keys and values in every "
        "layer, the same for all users",
        order=47,
        ranks_by="likelihood",
        colour="#CC79A7",
        line=(0, (1, 1)),
    )
    Peft = PrefixTuningConfig
    derived = AdapterMethod.derived | {
        *("token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"),
        *("modules_to_save", "prefix_projection", "encoder_hidden_size"),
    }
    fixed: ClassVar[Mapping[str, Any]] = {"item_slots": False}
    unread = frozenset(
        {"rank", "lora_alpha", "lora_dropout", "target_modules"}
        | {"curriculum", "mistakes", "weight_decay"}
    )
    reads_vectors = False
    puts_prefix = True

    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> PrefixTuningConfig:
        """Configuration of prefix tuning; without `prefix_projection`, of which a checkpoint holds
        too little to go on from.
        """
        options = {TOKENS: DEFAULT_TOKENS, **settings["options"]}
        positive_int(f"method {self.name}", TOKENS, options[TOKENS])
        if options.get("init_weights") not in (None, "zero"):
            raise ValueError(
                f"method {self.name}: init_weights={options['init_weights']!r} must be zero, or "
                "left out for random values"
            )
        return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, **options)

    def placed_config(self, run: Run, arm: Arm, routing_dim: int) -> PeftConfig:
        """`peft_config`, with as many layers as the arm has adapted."""
        peft = super().placed_config(run, arm, routing_dim)
        assert isinstance(peft, PrefixTuningConfig)
        count = num_layers(run.outline.model)
        peft.num_layers = self.settings_of(arm).last_layers or count  # type: ignore[assignment]
        return peft

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse also a language model whose layers cannot be given a prefix."""
        check_prefix(run.outline.model, run.outline.name)
        super().check(run, arm)
