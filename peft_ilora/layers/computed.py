"""Weights that are computed (pruned, normed or parametrised) and so are no parameters."""

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm


def is_computed(module: nn.Module, name: str = "weight") -> bool:
    """Whether a module computes a weight of this name from other tensors."""
    own = module._parameters
    return f"{name}_orig" in own or f"{name}_g" in own or parametrize.is_parametrized(module, name)


def current(module: nn.Module, name: str = "weight") -> Tensor:
    """Return a module's weight, computed from what it is computed from now.

    Pruning and the older weight norm compute it in a hook of the forward, so between forwards the
    attribute is that of the last one.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (prune.BasePruningMethod, WeightNorm)):
            hook(module, ())
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found
