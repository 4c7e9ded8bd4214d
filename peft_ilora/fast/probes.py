"""What the fast layers ask of torch's private state."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from peft_ilora.layers.tying import Transposed


def is_plain(x: Tensor, lora_a: nn.Module, lora_b: nn.Module, dropout: nn.Module) -> bool:
    """Whether nothing else wants to see the parts of an update.

    Compilers, autocast, hooks, sharded weights, vmap, selective checkpointing, forward derivatives
    and traces see through calls of modules only. The answer is the same when a checkpointed block
    is recomputed, so that its dropout is too.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
        or _has_any_global_hook()
        or not (x.is_cpu or x.is_cuda)
    ):
        return False
    if type(dropout) is not nn.Identity and (
        type(dropout) is not nn.Dropout or dropout._forward_hooks or dropout._forward_pre_hooks
    ):
        return False
    return is_plain_linear(lora_a) and is_plain_linear(lora_b)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling a module is multiplying with its weight, and nothing else."""
    own = module.__dict__
    if type(module) is not nn.Linear or "_hf_hook" in own or "forward" in own:  # accelerate's loads
        return False
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return False
    if own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    weight = own["_parameters"].get("weight")
    return type(weight) in (nn.Parameter, Tensor) and "ds_id" not in weight.__dict__  # DeepSpeed's


def weight_of(linear: nn.Module) -> Tensor:
    """Return the weight of a plain linear layer, past `nn.Module`'s slow attributes."""
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


def bias_of(linear: nn.Module) -> Tensor | None:
    """Return the bias of a plain linear layer, if it has one."""
    return linear._parameters["bias"]


def known_dtype(lora_a: nn.Module) -> torch.dtype | None:
    """Return the dtype of A's weight; None where a wrapper, such as FSDP's, hides the weight."""
    return lora_a.weight.dtype if isinstance(lora_a, (nn.Linear, Transposed)) else None


def parts_of(layer: Any, adapter: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return an adapter's A, B and dropout, past `nn.Module`'s slow attributes."""
    own = layer._modules
    return (
        own["lora_A"]._modules[adapter],
        own["lora_B"]._modules[adapter],
        own["lora_dropout"]._modules[adapter],
    )
