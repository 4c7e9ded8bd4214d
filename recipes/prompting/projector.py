"""Slots filled with what the recommender knows (the paper's hybrid prompt, Section 3.2)."""

import torch
from torch import Tensor, nn

from recipes.prompting.encoding import USER


class Projector(nn.Module):
    """`Proj(x) = W2 GELU(W1 x + b1) + b2`, from the recommender's width to the language model's."""

    def __init__(self, recommender_width: int, llm_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(recommender_width, llm_width)
        self.second = nn.Linear(llm_width, llm_width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Project float [..., recommender_width] to [..., llm_width]."""
        return self.second(nn.functional.gelu(self.first(vectors)))


def new_projector(items: Tensor, token_embeddings: Tensor, seed: int) -> Projector:
    """A projector whose outputs begin with the norm of token embeddings.

    A slot of another scale would drown the prompt or be drowned by it. So the last layer of a
    random projector is scaled until the projected items have the token embeddings' mean norm.

    Args:
        items: float32 [num_items, recommender_width], standardised.
        token_embeddings: [n, llm_width], of some n tokens.
        seed: Its own: every adapter method starts from the same projector.
    """
    width = token_embeddings.shape[1]
    generator = torch.Generator().manual_seed(seed)
    projector = Projector(items.shape[1], width)
    with torch.no_grad():
        for layer in (projector.first, projector.second):
            layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        wanted = token_embeddings.float().norm(dim=1).mean().cpu()
        projector.second.weight *= wanted / projector(items.cpu()).norm(dim=1).mean()
    return projector


def fill_slots(
    inputs_embeds: Tensor,
    slot_items: Tensor,
    item_embeddings: Tensor,
    user_representations: Tensor,
    projector: nn.Module,
) -> Tensor:
    """Put projected items and users where the slots are; every other position is kept.

    Args:
        inputs_embeds: [b, t, llm_width], token embeddings.
        slot_items: int64 [b, t]: an item id, `USER` (-2) or no slot (-1).
        item_embeddings: float [num_items, d], standardised.
        user_representations: float [b, d], standardised; read only where there is a user slot.
        projector: d -> llm_width, one for items and users: in SASRec both live in one space.

    Returns:
        [b, t, llm_width]
    """
    at_item, at_user = slot_items >= 0, slot_items == USER
    vectors = torch.cat(
        [item_embeddings[slot_items[at_item]], user_representations[at_user.nonzero()[:, 0]]]
    )
    rows, columns = torch.cat([at_item.nonzero(), at_user.nonzero()]).T
    return inputs_embeds.index_put((rows, columns), projector(vectors).to(inputs_embeds.dtype))
