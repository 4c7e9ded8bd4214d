"""A prefix made of the user's vector: keys and values for the last layers (deep prompts)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recipes.llm.frozen_prefix import decoder_layers


class UserPrefix(nn.Module):
    """`W2 GELU(W1 z + b1) + b2`; b2 is what all users share.

    Args:
        recommender_width: Width d of z, and of the hidden layer.
        tokens: Number n of keys and values in each layer.
        layers: How many of the last layers have a prefix.
        key_width: Width of a layer's keys: heads of keys times their width.
    """

    def __init__(self, recommender_width: int, tokens: int, layers: int, key_width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.layers = layers
        self.first = nn.Linear(recommender_width, recommender_width)
        self.second = nn.Linear(recommender_width, tokens * layers * 2 * key_width)

    def forward(self, users: Tensor) -> Tensor:
        """Map float [b, d] to [b, n, layers * 2 * key_width]; see `prefixed`."""
        return self.second(nn.functional.gelu(self.first(users))).unflatten(1, (self.tokens, -1))


def user_prefix(
    model: PreTrainedModel, *, recommender_width: int, tokens: int, last_layers: int | None
) -> UserPrefix:
    """A prefix for the last layers of a model, or for all of them, without values yet."""
    config = model.config.get_text_config(decoder=True)
    layers = len(decoder_layers(model)) if last_layers is None else last_layers
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return UserPrefix(recommender_width, tokens, layers, key_heads * width)


@torch.no_grad()
def start_prefix(prefix: UserPrefix, seed: int) -> None:
    """Start values: at first all users have the same keys and values, all of them zero.

    So a position gives the prefix some attention, and gets nothing for it.

    Args:
        prefix: The prefix.
        seed: Random seed of the prefix alone.
    """
    generator = torch.Generator().manual_seed(seed)
    prefix.first.weight.normal_(std=prefix.first.in_features**-0.5, generator=generator)
    for tensor in (prefix.first.bias, prefix.second.weight, prefix.second.bias):
        tensor.zero_()
