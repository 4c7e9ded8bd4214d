"""What training and evaluation need to know of an adapter; each method fills one in."""

from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig

from recipes.experiment import AdapterSettings

RoutedBy = Literal["vector", "prompt"]


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """One adapter of one seed."""

    label: str
    """On progress bars: `ilora seed 0`."""
    seed: int
    """Decides initial weights, data order, dropout and curriculum."""
    settings: AdapterSettings
    peft: PeftConfig
    """What wraps the language model."""
    user_slot: bool = False
    """Whether the prompt shows the user representation in a slot of its own."""
    routed_by: RoutedBy | None = None
    """What the adapter takes as `routing_embeds`: the user representation, the prompt's own mean
    embedding, or nothing."""
    gate_learning_rate_scale: float = 1.0
    """The gate's learning rate as a multiple of the adapter's."""
