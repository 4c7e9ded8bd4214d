"""A gate: a generator, which makes logits of what it reads, and the form that reads the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.errors import sharded_error
from peft_ilora.gating.coordinates import Coordinates
from peft_ilora.gating.form import GateForm
from peft_ilora.gating.linear import GateLinear
from peft_ilora.gating.trunk import Trunk


class Gate(nn.Module):
    """`form.coefficients(project(z))`.

    Args:
        config: The adapter's configuration.
        project: The generator.
        form: The form.
    """

    def __init__(self, config: ILoRAConfig, project: nn.Module, form: GateForm) -> None:
        super().__init__()
        self.project = project
        self.form = form
        self.noise_std = config.noise_std
        self.num_experts = config.num_experts
        self.widest: Coordinates | None = None
        """Of a trunk: rank coordinates of the widest layer, for which its head is made."""

    @property
    def by_layer(self) -> bool:
        """Whether each layer has coefficients of its own, and so has to name its place."""
        return isinstance(self.project, Trunk)

    def settle(self, layers: Sequence[tuple[str, Coordinates]]) -> None:
        """Make the parameters of a trunk, for the names and rank coordinates of its layers.

        A layer's place is its index in here.
        """
        assert isinstance(self.project, Trunk)
        self.widest = max((own for _, own in layers), key=self.form.count)
        self.project.settle([name for name, _ in layers], self.form.count(self.widest))

    def forward(self, z: Tensor, noise: Tensor | None = None, place: int | None = None) -> Tensor:
        """Map what the gate reads to coefficients.

        Args:
            z: [..., width], floating point, on any device; of a hard gate [batch], int64.
            noise: What `draw_noise` has drawn; None: without noise.
            place: Whose coefficients are wanted, where each layer has its own; None: everyone's.

        Returns:
            [..., coefficients] on the gate's device, float32 where the gate is of half precision;
            of a trunk [layers, batch, coefficients], as wide as the widest layer needs them.

        Raises:
            RuntimeError: The gate is sharded (FSDP2), and called outside of the model's forward.
            ValueError: `z` is on the meta device and the gate is not.
        """
        self._check_readable(z)
        logits = self.project(z) if place is None else self.project(z, place)
        if logits.dtype in (torch.float16, torch.bfloat16):  # under autocast
            logits = logits.float()
        if noise is not None:
            logits = logits + self.noise_std * noise.to(logits.device, logits.dtype)
        return self.form.coefficients(logits)

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Draw the noise of a forward over inputs of this leading shape.

        Returns:
            [*shape, num_experts], standard normal, in training with `noise_std`; None: no noise.
        """
        if not (self.training and self.noise_std > 0):
            return None
        return torch.randn(*shape, self.num_experts, device=device)

    def cut(self, coefficients: Tensor, own: Coordinates) -> Tensor:
        """Return what a layer needs of its coefficients, which a trunk makes for the widest one."""
        if self.widest is None or self.widest is own:
            return coefficients
        return self.form.cut(coefficients, self.widest, own)

    def unrouted(self, own: Coordinates, like: Tensor) -> Tensor:
        """Return a layer's coefficients under `missing_routing="uniform"`, [coefficients]."""
        found = self.form.neutral(own, like)
        if self.training and torch.is_grad_enabled():
            for parameter in self.parameters():  # DDP waits for a gradient, of zeros
                if parameter.requires_grad and not hasattr(parameter, "device_mesh"):
                    found = found + 0 * parameter.flatten()[:1].sum().to(found)
        return found

    def _check_readable(self, z: Tensor) -> None:
        project = self.project
        weight = project.weight if isinstance(project, GateLinear) else _first(project)
        if weight is None:
            return
        if hasattr(weight, "device_mesh") and not _gathers(project):
            raise sharded_error("the gate's")
        if z.is_meta and not weight.is_meta:
            raise ValueError(
                "routing_embeds is on the meta device, where tensors have no values: build it on a "
                "real device, the model's for instance"
            )


def _first(module: nn.Module) -> Tensor | None:
    return next(module.parameters(), None)


def _gathers(module: nn.Module) -> bool:
    """Whether something may gather the module's weights before it runs."""
    return any(part._forward_pre_hooks for part in module.modules())
