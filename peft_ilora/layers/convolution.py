"""The gated update of convolutions."""

from typing import Any

from torch import Tensor

from peft_ilora.layers.update import GatedUpdate


class GatedConv(GatedUpdate):
    """The update of convolutions: [batch, in, ...] -> [batch, out, ...].

    A grouped convolution holds a part of every expert in each group.
    """

    def down(self, module: Any, adapter: str, x: Tensor) -> Tensor:
        """Return `A dropout(x)` with its channels, the rank coordinates, moved to the end."""
        hidden = module.lora_A[adapter](module.lora_dropout[adapter](x))
        return hidden.movedim(1, -1)

    def up(self, module: Any, adapter: str, hidden: Tensor) -> Tensor:
        """Return `B hidden`, [batch, out, ...]."""
        return module.lora_B[adapter](hidden.movedim(-1, 1))
