"""`B diag(w) A` with weights w of experts that sum to one: the paper's mixture.

Experts are neighbouring rank coordinates, so `sum_k w_k B_k A_k` is `B diag(spread(w)) A`: a scale
(arXiv 2408.10159, Eq. 6 to 8, rearranged).
"""

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.factors import Factors
from peft_ilora.gating.form import Statistics
from peft_ilora.gating.statistics import entropy, load_balancing, statistics


class Softmax(Factors):
    """`w = softmax(logits / temperature)`: non-negative, summing to one over experts.

    With `top_k` the softmax runs over the k largest logits of a row, so the kept weights are
    renormalised and only they get gradients (Shazeer et al., arXiv 1701.06538, Eq. 3 to 5, with
    noise of a constant standard deviation).
    """

    def __init__(self, config: ILoRAConfig) -> None:
        super().__init__(config)
        self.temperature = config.temperature
        self.top_k = config.top_k

    def count(self, coordinates: Coordinates) -> int:
        """Return the number of experts: one weight each."""
        return coordinates.num_experts

    def coefficients(self, logits: Tensor) -> Tensor:
        """Weigh the experts, [..., num_experts]."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None:
            kept = logits.topk(self.top_k, dim=-1).indices
            experts = torch.arange(logits.shape[-1], device=logits.device)
            # No scatter: torch.jit.trace would keep its source as a constant, of this batch.
            chosen = (kept.unsqueeze(-1) == experts).any(dim=-2)
            logits = logits.masked_fill(~chosen, -torch.inf)
        return torch.softmax(logits, dim=-1)

    def neutral(self, coordinates: Coordinates, like: Tensor) -> Tensor:
        """Weigh all experts alike."""
        return super().neutral(coordinates, like) + 1 / coordinates.num_experts

    def factors(self, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Spread each weight over the coordinates that its expert owns."""
        return coordinates.spread(coefficients)

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, utilisation, chosen, entropy and max_entropy."""
        return statistics(coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return load_balancing and entropy."""
        return {
            "load_balancing": load_balancing(coefficients, self.top_k or 1),
            "entropy": entropy(coefficients),
        }
