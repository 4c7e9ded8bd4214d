"""Fills slots at a decoder layer instead of at the input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from recipes.prompting.encoding import NO_SLOT


@contextmanager
def slots_filled_at(
    layers: nn.ModuleList,
    index: int,
    slot_items: Tensor,
    fill: Callable[[Tensor, Tensor, int], Tensor],
) -> Iterator[None]:
    """Within the block, whatever runs the prompts has their slots filled as it enters a layer.

    Steps that continue a prompt from its cache hold no slots. Prompts may be repeated for several
    answers, and answers may follow them.

    Args:
        layers: The decoder's layers.
        index: The layer whose input is filled.
        slot_items: int64 [b, t], see `fill_slots`.
        fill: (states [b * n, t + a, width], slots [b * n, t + a], n) -> states with filled slots,
            where every prompt is repeated n times.
    """

    def enter(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = args[0] if args else kwargs["hidden_states"]
        caches = [one for one in (*args, *kwargs.values()) if isinstance(one, Cache)]
        too_short = states.shape[1] < slot_items.shape[1]
        if too_short or any(_holds_tokens(cache, index) for cache in caches):
            return None
        repeats = states.shape[0] // slot_items.shape[0]
        slots = slot_items.repeat_interleave(repeats, dim=0)
        slots = F.pad(slots, (0, states.shape[1] - slots.shape[1]), value=NO_SLOT)
        filled = fill(states, slots, repeats)
        return ((filled, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": filled})

    handle = layers[index].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _holds_tokens(cache: Cache, index: int) -> bool:
    """Whether a layer of a cache holds tokens; no if it does not tell, as a state of fixed size."""
    try:
        return cache.get_seq_length(index) > 0
    except ValueError:
        return False
