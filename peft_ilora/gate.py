"""The gate: routing embedding -> expert weights."""

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig


class Gate(nn.Module):
    """`w(z) = softmax(project(z))`, non-negative, summing to one over experts.

    `linear` is the paper's bias-free `W_g z` (arXiv 2408.10159, Eq. 8); `mlp` puts one hidden layer
    of width `routing_dim` with GELU in front.

    Args:
        config: Read for `gate`, `routing_dim` and `num_experts`.
    """

    def __init__(self, config: ILoRAConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.routing_dim = config.routing_dim
        out = nn.Linear(config.routing_dim, config.num_experts, bias=False)
        if config.gate == "linear":
            self.project: nn.Module = out
        else:
            hidden = nn.Linear(config.routing_dim, config.routing_dim)
            self.project = nn.Sequential(hidden, nn.GELU(), out)

    @property
    def device(self) -> torch.device:
        """Where the gate lies."""
        return next(self.parameters()).device

    def forward(self, routing_embeds: Tensor) -> Tensor:
        """Expert weights.

        Args:
            routing_embeds: [batch, routing_dim], floating point, on any device.

        Returns:
            [batch, num_experts] on the gate's device; float32 where the gate is of half precision.
        """
        weight = next(self.parameters())
        logits = self.project(routing_embeds.to(weight.device, weight.dtype))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return torch.softmax(logits, dim=-1)
