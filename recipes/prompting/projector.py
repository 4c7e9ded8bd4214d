"""Fills prompt slots with the recommender's vectors (hybrid prompt, Section 3.2 of the paper)."""

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
    """A projector whose initial outputs have the mean norm of token embeddings.

    With a much larger or smaller norm, a slot would dominate the prompt or vanish in it. So the
    last layer of a random projector is scaled such that projected items have this mean norm.

    Args:
        items: float32 [num_items, recommender_width], standardised item embeddings.
        token_embeddings: [n, llm_width], embeddings of n tokens.
        seed: Random seed of the projector alone, so that all adapters start from the same one.
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
    """Put projected items and users into the slots; every other position is kept.

    Args:
        inputs_embeds: [b, t, llm_width], token embeddings.
        slot_items: int64 [b, t]: an item id, `USER` (-2) or no slot (-1).
        item_embeddings: float [num_items, d], standardised.
        user_representations: float [b, d], standardised; read only if there is a user slot.
        projector: Maps d to llm_width, for items and users alike, as SASRec puts both in one space.

    Returns:
        [b, t, llm_width]
    """
    at_item, at_user = slot_items >= 0, slot_items == USER
    vectors, places = item_embeddings[slot_items[at_item]], at_item.nonzero()
    users = at_user.nonzero()
    if len(users):
        vectors = torch.cat([vectors, user_representations[users[:, 0]]])
        places = torch.cat([places, users])
    rows, columns = places.T
    return inputs_embeds.index_put((rows, columns), projector(vectors).to(inputs_embeds.dtype))
