"""The items' embeddings, which a network reads histories by and scores items with."""

import torch
from torch import Tensor, nn

from recipes.data.padding import PADDING


class ItemTable(nn.Embedding):
    """Embeddings of about unit length, and a zero vector that stands for padding.

    Args:
        num_items: Number of items.
        hidden_size: Width of an embedding.
    """

    def __init__(self, num_items: int, hidden_size: int) -> None:
        super().__init__(num_items + 1, hidden_size, padding_idx=num_items)
        nn.init.normal_(self.weight, std=hidden_size**-0.5)
        with torch.no_grad():
            self.weight[num_items].zero_()

    @property
    def real(self) -> Tensor:
        """The items' embeddings without padding's: float [num_items, hidden]."""
        return self.weight[:-1]

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings of item ids, int64 [..]; -1 is padding. Returns float [.., hidden]."""
        last = self.num_embeddings - 1
        return super().forward(torch.where(input == PADDING, last, input))
