"""The gate: what it reads -> expert weights."""

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import sharded_error


class GateLinear(nn.Linear):
    """A linear layer that takes its input to its weight's device, and computes in float32 at least.

    Here, and not before the call: hooks that load or cast a weight have run by now.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        moved = input.to(self.weight.device, dtype)
        return nn.functional.linear(moved, self.weight.to(dtype), bias)


class Gate(nn.Module):
    """`w(z) = softmax(project(z) / temperature)`, non-negative, summing to one over experts.

    `linear` is the paper's bias-free `W_g z` (arXiv 2408.10159, Eq. 8); `mlp` puts one hidden layer
    of the input's width with GELU in front. With `top_k` the softmax runs over the k largest logits
    of a row, so the kept weights are renormalised and only they get gradients (Shazeer et al.,
    arXiv 1701.06538, Eq. 3 to 5, with noise of a constant standard deviation).

    Args:
        config: Read for `gate` and what belongs to it.
        width: Of what the gate reads.
    """

    def __init__(self, config: ILoRAConfig, width: int) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.top_k = config.top_k
        self.noise_std = config.noise_std
        out = GateLinear(width, config.num_experts, bias=False)
        if config.gate_init == "zeros":
            nn.init.zeros_(out.weight)
        if config.gate == "linear":
            self.project: nn.Module = out
        else:
            self.project = nn.Sequential(GateLinear(width, width), nn.GELU(), out)

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Expert weights.

        Args:
            z: [..., width], floating point, on any device.
            noise: [..., num_experts], standard normal, drawn by the caller; None: without noise.

        Returns:
            [..., num_experts] on the gate's device; float32 where the gate is of half precision.

        Raises:
            RuntimeError: The gate is sharded (FSDP2), and called outside of the model's forward.
            ValueError: `z` is on the meta device and the gate is not.
        """
        of = self.project
        weight = of.weight if isinstance(of, GateLinear) else next(self.parameters())
        if hasattr(weight, "device_mesh") and not _gathers(self.project):
            raise sharded_error("the gate's")
        if z.is_meta and not weight.is_meta:
            raise ValueError(
                "routing_embeds is on the meta device, where tensors have no values: build it on a "
                "real device, the model's for instance"
            )
        logits = self.project(z)
        if logits.dtype in (torch.float16, torch.bfloat16):  # under autocast
            logits = logits.float()
        if noise is not None:
            logits = logits + self.noise_std * noise.to(logits.device, logits.dtype)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None:
            kept = logits.topk(self.top_k, dim=-1).indices
            dropped = torch.ones_like(logits, dtype=torch.bool).scatter(-1, kept, False)
            logits = logits.masked_fill(dropped, -torch.inf)
        return torch.softmax(logits, dim=-1)


def _gathers(module: nn.Module) -> bool:
    """Whether something may gather the module's weights before it runs."""
    return any(part._forward_pre_hooks for part in module.modules())


class HardGate(nn.Module):
    """The expert that is named: a given assignment of instances, of clusters for instance."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, expert: Tensor, noise: None = None) -> Tensor:
        """Expert weights.

        Args:
            expert: [batch], int64.
            noise: Never given: nothing is learned.

        Returns:
            [batch, num_experts], float32, one-hot.
        """
        return nn.functional.one_hot(expert, self.num_experts).float()


def make_gate(config: ILoRAConfig, width: int) -> Gate | HardGate:
    """A configuration's gate.

    Args:
        config: The adapter's.
        width: Of what the gate reads.
    """
    return HardGate(config.num_experts) if config.gate == "hard" else Gate(config, width)
