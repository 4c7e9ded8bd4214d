"""Keys and values in front of a prompt's, in the last decoder layers (prefix tuning).

Source: Li and Liang, 2021, arXiv 2101.00190, Section 4. Every position of prompt and answer attends
to them, in each attention of those layers. They enter where attention has computed its keys and
values, or taken them from a cache, which never holds the prefix itself. Positions count from the
prompt's first token. So whatever runs the model, repeats its cache for several answers, or leaves
layers out, is the same with a prefix as without one.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recipes.llm.frozen_prefix import decoder_layers

CACHE, MASK, STATES = "past_key_values", "attention_mask", "hidden_states"
BIASES = {"alibi", "position_bias"}
"""Parameters of an attention that hold a value for each key, and none for a prefix."""
KINDS = ("eager", "sdpa")
"""Implementations of attention whose masks can be widened."""


@contextmanager
def prefixed(model: PreTrainedModel, prefix: Tensor, num_layers: int) -> Iterator[None]:
    """Within the block, the last decoder layers attend to a prefix.

    Args:
        model: A causal language model that `check_prefix` lets pass.
        prefix: [p, n, num_layers * 2 * width], n keys and n values for each layer, where p is 1, or
            the number of prompts; the width is that of a layer's keys. A prompt may be repeated
            for several answers.
        num_layers: How many of the last layers have a prefix.
    """
    layers = list(decoder_layers(model))[-num_layers:]
    pairs = prefix.unflatten(2, (num_layers, 2, -1)).permute(2, 3, 0, 1, 4)  # [layers, 2, p, n, w]
    with ExitStack() as hooks:
        for layer, pair in zip(layers, pairs, strict=True):
            handle = _attention(layer).register_forward_pre_hook(_Entry(pair), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def check_prefix(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose layers cannot be given a prefix.

    Args:
        model: The model; it may be on the device `meta`.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: What the model lacks, and the advice to choose another.
    """
    kind = model.config._attn_implementation
    found = [_attentions(layer) for layer in decoder_layers(model)]
    if kind not in KINDS or any(len(one) != 1 for one in found):
        raise ValueError(
            f"adapt.llm={name!r}: {type(model).__name__} (attention {kind!r}) does not have one "
            "attention with a cache of keys and values in every layer, so no prefix can be put "
            "there: choose another adapt.llm, or leave the method out"
        )


def _attentions(layer: nn.Module) -> list[nn.Module]:
    return [one for one in layer.modules() if one is not layer and _has_cache(one)]


def _has_cache(module: nn.Module) -> bool:
    known = inspect.signature(module.forward).parameters.keys()
    return {CACHE, MASK} <= known and not BIASES & known


def _attention(layer: nn.Module) -> nn.Module:
    (found,) = _attentions(layer)
    return found


class _Entry:
    """Before an attention runs: hands it a cache that adds the prefix, and a wider mask."""

    def __init__(self, pair: Tensor) -> None:
        self.pair = pair

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs[STATES]
        cache, mask = kwargs.get(CACHE), kwargs.get(MASK)
        seen = 0 if cache is None else cache.get_seq_length(module.layer_idx)
        if mask is None:
            mask = _causal(states.shape[1], seen, states.device)
        added = self.pair.shape[2]
        wider = F.pad(mask, (added, 0), value=True if mask.dtype == torch.bool else 0.0)
        return args, {**kwargs, CACHE: _WithPrefix(cache, self.pair), MASK: wider}


def _causal(queries: int, seen: int, device: torch.device) -> Tensor:
    """What positions see after `seen` others, bool [1, 1, queries, seen + queries]."""
    whole = torch.ones(queries, seen + queries, dtype=torch.bool, device=device)
    return whole.tril(diagonal=seen)[None, None]


class _WithPrefix:
    """Stands in for an attention's cache, which may be None."""

    def __init__(self, cache: Cache | None, pair: Tensor) -> None:
        self.cache = cache
        self.pair = pair

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions so far, [rows, heads, t, d], behind the prefix."""
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        first, second = (
            torch.cat([_placed(own, like), like], dim=2)
            for own, like in zip(self.pair, (keys, values), strict=True)
        )
        return first, second

    def get_seq_length(self, *args: Any) -> int:
        """Number of positions so far, without the prefix."""
        return 0 if self.cache is None else self.cache.get_seq_length(*args)


def _placed(prefix: Tensor, like: Tensor) -> Tensor:
    """[p, n, heads * d] -> [rows, heads, n, d], with each prompt's prefix for all its rows."""
    heads = prefix.unflatten(2, (like.shape[1], -1)).transpose(1, 2).to(like.dtype)
    return heads.repeat_interleave(like.shape[0] // heads.shape[0], dim=0)
