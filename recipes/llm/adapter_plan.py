"""The plan of an adapter: what training and evaluation need to know. Every method makes its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from recipes.experiment import AdapterSettings
from recipes.llm.user_prefix import UserPrefix

RoutedBy = Literal["vector", "prompt"]


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The plan of one adapter for one seed."""

    label: str
    """Label of progress bars, such as `ilora seed 0`."""
    seed: int
    """Random seed of initial weights, data order, dropout and curriculum."""
    settings: AdapterSettings
    peft: PeftConfig
    """PEFT configuration with which the language model is wrapped."""
    user_slot: bool = False
    """Whether the prompt shows the user representation in a slot of its own."""
    routed_by: RoutedBy | None = None
    """What the adapter gets as `routing_embeds`: the user representation (`vector`), the prompt's
    mean embedding (`prompt`), or nothing (None)."""
    first_layer: int | None = None
    """Index of the first adapted decoder layer, if the layers below it are a frozen prefix."""
    gate_learning_rate_scale: float = 1.0
    """The gate's learning rate as a multiple of the adapter's."""
    prefix: Callable[[PreTrainedModel], UserPrefix] | None = None
    """Makes what makes keys and values of the user's vector, for a model; None for an adapter
    without them."""
    start: Callable[[PeftModel], None] | None = None
    """What is done to the new adapter before it is trained."""

    @property
    def has_slots(self) -> bool:
        """Whether prompts hold slots, so that a projector is trained."""
        return self.user_slot or self.settings.item_slots

    @property
    def hybrid_at_test(self) -> bool:
        """Whether the slots of items are filled in evaluation."""
        return "text-only-test" not in self.settings.mistakes
