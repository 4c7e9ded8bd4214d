"""Mixtures: gates whose coefficients are the weights w_k of experts, `dW = sum_k w_k B_k A_k`.

Experts are neighbouring rank coordinates, so a mixture is `B diag(spread(w)) A`: a scale
(arXiv 2408.10159, Eq. 6 and 7, rearranged).
"""

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import sharded_error
from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm, Scale, Statistics
from peft_ilora.gating.statistics import entropy, load_balancing, statistics


class Mixture(GateForm):
    """A gate that weighs experts: its coefficients are [..., num_experts]."""

    def __init__(self, config: ILoRAConfig, width: int) -> None:
        super().__init__(config, width)
        self.num_experts = config.num_experts
        self.top_k = config.top_k

    def unrouted(self, like: Tensor) -> Tensor:
        """Weigh all experts alike: [num_experts], in float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        count = self.num_experts
        weights = torch.full((count,), 1 / count, dtype=dtype, device=like.device)
        if self.training and torch.is_grad_enabled():
            for parameter in self.parameters():  # DDP waits for a gradient, of zeros
                if parameter.requires_grad and not hasattr(parameter, "device_mesh"):
                    weights = weights + 0 * parameter.flatten()[:1].sum().to(weights)
        return weights

    def modulation(
        self, coefficients: Tensor, coordinates: Coordinates, scaling: float, like: Tensor
    ) -> Scale:
        """Spread `scaling * w` over the coordinates that each expert owns."""
        weights = (coefficients * scaling).to(like.device, like.dtype)
        return Scale(coordinates.spread(weights))

    def fold(self, b: Tensor, coefficients: Tensor, coordinates: Coordinates) -> Tensor:
        """Multiply each expert's columns of B by its weight."""
        return coordinates.fold(b, coefficients)

    def statistics(self, coefficients: Tensor) -> Statistics:
        """Return rows, utilisation, chosen, entropy and max_entropy."""
        return statistics(coefficients)

    def losses(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return load_balancing and entropy."""
        return {
            "load_balancing": load_balancing(coefficients, self.top_k or 1),
            "entropy": entropy(coefficients),
        }


class Gate(Mixture):
    """`w(z) = softmax(project(z) / temperature)`: non-negative, summing to one over experts.

    `linear` is the paper's bias-free `W_g z` (arXiv 2408.10159, Eq. 8); `mlp` puts one hidden layer
    of the input's width with GELU in front. With `top_k` the softmax runs over the k largest logits
    of a row, so the kept weights are renormalised and only they get gradients (Shazeer et al.,
    arXiv 1701.06538, Eq. 3 to 5, with noise of a constant standard deviation).
    """

    def __init__(self, config: ILoRAConfig, width: int) -> None:
        super().__init__(config, width)
        self.temperature = config.temperature
        self.noise_std = config.noise_std
        out = GateLinear(width, config.num_experts, bias=False)
        if config.gate_init == "zeros":
            nn.init.zeros_(out.weight)
        if config.gate == "linear":
            self.project: nn.Module = out
        else:
            self.project = nn.Sequential(GateLinear(width, width), nn.GELU(), out)

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Weigh the experts.

        Args:
            z: [..., width], floating point, on any device.
            noise: [..., num_experts], standard normal; None: without noise.

        Returns:
            [..., num_experts] on the gate's device; float32 where the gate is of half precision.

        Raises:
            RuntimeError: The gate is sharded (FSDP2), and called outside of the model's forward.
            ValueError: `z` is on the meta device and the gate is not.
        """
        self._check_readable(z)
        logits = self.project(z)
        if logits.dtype in (torch.float16, torch.bfloat16):  # under autocast
            logits = logits.float()
        if noise is not None:
            logits = logits + self.noise_std * noise.to(logits.device, logits.dtype)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None:
            kept = logits.topk(self.top_k, dim=-1).indices
            experts = torch.arange(self.num_experts, device=logits.device)
            # No scatter: torch.jit.trace would keep its source as a constant, of this batch.
            chosen = (kept.unsqueeze(-1) == experts).any(dim=-2)
            logits = logits.masked_fill(~chosen, -torch.inf)
        return torch.softmax(logits, dim=-1)

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Draw standard normal noise, [*shape, num_experts], in training with `noise_std`."""
        if not (self.training and self.noise_std > 0):
            return None
        return torch.randn(*shape, self.num_experts, device=device)

    def _check_readable(self, z: Tensor) -> None:
        project = self.project
        weight = project.weight if isinstance(project, GateLinear) else next(self.parameters())
        if hasattr(weight, "device_mesh") and not _gathers(project):
            raise sharded_error("the gate's")
        if z.is_meta and not weight.is_meta:
            raise ValueError(
                "routing_embeds is on the meta device, where tensors have no values: build it on a "
                "real device, the model's for instance"
            )


class HardGate(Mixture):
    """The expert that is named: a given assignment of instances, for instance of clusters."""

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Weigh the named expert with one and every other with zero.

        Args:
            z: Expert ids, [batch], int64.
            noise: Never given: nothing is learned.

        Returns:
            [batch, num_experts], float32, one-hot.
        """
        return nn.functional.one_hot(z, self.num_experts).float()


class GateLinear(nn.Linear):
    """A linear layer that takes its input to its weight's device, and computes in float32 at least.

    It does so here and not before the call, because hooks that load or cast a weight have run by
    now.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        moved = input.to(self.weight.device, dtype)
        return nn.functional.linear(moved, self.weight.to(dtype), bias)


def _gathers(module: nn.Module) -> bool:
    """Whether something may gather the module's weights before it runs."""
    return any(part._forward_pre_hooks for part in module.modules())
