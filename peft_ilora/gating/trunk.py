"""The generator that all layers share, and that knows which layer asks.

One small network reads the routing embedding, an embedding of the layer and one of the module's
name, and ends in a head that starts at zero, so each module has coefficients of its own for a few
thousand parameters (the generator of Zhyper, arXiv 2510.19733, with the zero start of
adaLN-Zero, arXiv 2212.09748, Section 3.2). All modules are evaluated in one product.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_ilora.gating.linear import GateLinear

HIDDEN = 32
"""Width of the hidden layer."""
EMBEDDED = 8
"""Width of the embedding of a layer, and of that of a module's name."""


class Trunk(nn.Module):
    """`head(gelu(W [z, e_layer, e_module] + b))`, whose first product is taken part by part.

    It has no parameters before `settle` has told it the layers of its model.

    Args:
        width: Width of z.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.indices: list[tuple[int, int]] = []
        """Rows of the two embeddings, for each module."""
        self._moved: dict[torch.device, Tensor] = {}

    def settle(self, names: Sequence[str], outputs: int) -> None:
        """Make the parameters.

        Args:
            names: Names of the adapted modules in the model.
            outputs: Logits of each.
        """
        self.indices = embedding_rows(names)
        layers, kinds = (1 + max(rows) for rows in zip(*self.indices, strict=True))
        self.read = GateLinear(self.width, HIDDEN)
        self.layer_embedding = _GateEmbedding(layers, EMBEDDED)
        self.module_embedding = _GateEmbedding(kinds, EMBEDDED)
        self.locate = GateLinear(2 * EMBEDDED, HIDDEN, bias=False)
        self.head = GateLinear(HIDDEN, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, place: int | None = None) -> Tensor:
        """Return the logits of all modules, or of one.

        Args:
            z: [batch, width]
            place: The module's number in `settle`; None: all of them.

        Returns:
            [modules, batch, outputs]; of one module [batch, outputs].
        """
        index = self._index(place)
        embedded = self.layer_embedding(index[0]), self.module_embedding(index[1])
        where = self.locate(torch.cat(embedded, dim=-1))  # [modules, hidden]
        # [batch, hidden] + [modules, 1, hidden] -> [modules, batch, outputs]
        logits = self.head(nn.functional.gelu(self.read(z) + where.unsqueeze(1)))
        return logits if place is None else logits[0]

    def _index(self, place: int | None) -> Tensor:
        """[2, modules], int64: rows of the two embeddings."""
        device = self.layer_embedding.weight.device
        device = torch.device("cpu") if device.type == "meta" else device  # of weights to be loaded
        if place is not None:
            return torch.tensor([self.indices[place]], device=device).t()
        if device not in self._moved:
            with torch.inference_mode(False):  # else no training could use it
                self._moved[device] = torch.tensor(self.indices, device=device).t()
        return self._moved[device]


class _GateEmbedding(nn.Embedding):
    """An embedding that takes its ids to its weight's device, as `GateLinear` does its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.device))


def embedding_rows(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the row of each module's layer, and that of its name.

    They are places among the different ones in order, layers by number. Saved adapters have their
    rows in this order, so it must not change.
    """
    pairs = [parted(name) for name in names]
    layers = sorted({layer for layer, _ in pairs}, key=_natural)
    kinds = sorted({kind for _, kind in pairs})
    return [(layers.index(layer), kinds.index(kind)) for layer, kind in pairs]


def parted(name: str) -> tuple[str, str]:
    """Return the layer that a module lies in, and its name without the layer's number.

    The first number in a name is the layer's: `model.layers.3.self_attn.q_proj` is
    `model.layers.self_attn.q_proj` of `model.layers.3`. A module outside of numbered layers, such
    as `lm_head`, lies in `""`.
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if first is None:
        return "", name
    return ".".join(parts[: first + 1]), ".".join(parts[:first] + parts[first + 1 :])


def _natural(layer: str) -> list[tuple[int, str]]:
    """Sort `layers.10` behind `layers.9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", layer)]
