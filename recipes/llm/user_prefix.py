"""A prefix made of the user's vector: keys and values for the last layers (deep prompts)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recipes.failures import stumble
from recipes.llm.frozen_prefix import decoder_layers
from recipes.llm.prefix import prefixed
from recipes.llm.training import accepted


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


def check_prefix_is_read(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose layers do not all read the keys and values of a prefix.

    That a layer looks as if it did (`check_prefix`) is not enough: hybrid models hand their cache
    to layers of other kinds too. So a prefix is tried on a few tokens.

    Args:
        model: The frozen model, without an adapter.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: What happened, and the advice to choose another.
    """
    try:
        gradient = _gradient_of_a_prefix(model)
        if not gradient.abs().amax(dim=(0, 1, 4)).all():
            raise ValueError("not every layer reads it")
    except Exception as error:  # a family may stumble over anything
        raise ValueError(
            f"adapt.llm={name!r}: {type(model).__name__} cannot be given a prefix of keys and "
            f"values ({stumble(error)}): choose another adapt.llm, or leave out prefixrec and "
            "deep-prompt"
        ) from error


@torch.enable_grad()
def _gradient_of_a_prefix(model: PreTrainedModel) -> Tensor:
    """How a few tokens' scores change with a random prefix, [1, n, layers, 2, width]."""
    ids = torch.arange(3, 9, device=model.device)[None]
    mask = torch.ones_like(ids)
    places = accepted(model, position_ids=mask.cumsum(dim=1) - 1)
    layers = len(decoder_layers(model))
    like = user_prefix(model, recommender_width=1, tokens=2, last_layers=None).second
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randn(1, 2, like.out_features // 2, generator=generator).to(model.device)
    prefix.requires_grad_()
    with prefixed(model, prefix, layers):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False, **places)
    score = outputs.logits.float().log_softmax(dim=-1)[0, :, 0].sum()
    (gradient,) = torch.autograd.grad(score, prefix)
    return gradient.unflatten(2, (layers, 2, -1))
