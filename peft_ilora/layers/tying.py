"""Adapters of layers whose base weights are tied: one adapter, read by both layers.

PEFT's tied adapters are views of one storage (`ensure_weight_tying`), which the first cast, move or
assignment separates. Here the output layer owns nothing: it reads the embedding's matrices.
"""

import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_ilora.layers.computed import current


class Transposed(nn.Module):
    """A linear layer whose weight is a matrix of an embedding's adapter, transposed.

    Args:
        matrices: The embedding's matrices, by adapter; not a part of this module.
        adapter: Name of the adapter.
    """

    bias = None

    def __init__(self, matrices: nn.ParameterDict, adapter: str) -> None:
        super().__init__()
        self.matrices = (matrices,)
        self.adapter = adapter

    @property
    def weight(self) -> Tensor:
        """[out, in]"""
        return current(self.matrices[0], self.adapter).t()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return F.linear(x, self.weight)


def tie(layer: LoraLayer, embedding: nn.Module, adapter: str, name: str) -> None:
    """Let a linear layer's adapter be the one of the input embedding, transposed.

    Raises:
        ValueError: The two cannot have one adapter.
    """
    if not isinstance(embedding, LoraLayer) or adapter not in embedding.lora_embedding_A:
        raise ValueError(
            f"ensure_weight_tying=True ties {name!r} to the input embedding, a "
            f"{type(embedding).__name__} that this adapter does not adapt: target the embedding, "
            "or leave ensure_weight_tying at its default"
        )
    if adapter not in layer.lora_A:
        raise ValueError(
            f"ensure_weight_tying=True ties {name!r}, which is no linear layer, to the input "
            "embedding: leave ensure_weight_tying at its default and target what is to be adapted"
        )
    ranks = layer.r[adapter], embedding.r[adapter]
    scalings = layer.scaling[adapter], embedding.scaling[adapter]
    if len(set(ranks)) > 1 or len(set(scalings)) > 1:
        raise ValueError(
            f"ensure_weight_tying=True gives {name!r} and the input embedding one adapter, but "
            f"rank_pattern or alpha_pattern sets total ranks {ranks} and scalings {scalings}: let "
            "the patterns name both or neither"
        )
    layer.kwargs.pop("tied_adapter", None)  # PEFT's views of the matrices as they were
    layer.lora_A[adapter] = Transposed(embedding.lora_embedding_B, adapter)
    layer.lora_B[adapter] = Transposed(embedding.lora_embedding_A, adapter)


def is_tied(layer: LoraLayer, adapter: str) -> bool:
    """Whether a layer reads the adapter of the input embedding."""
    return adapter in layer.lora_B and isinstance(layer.lora_B[adapter], Transposed)
