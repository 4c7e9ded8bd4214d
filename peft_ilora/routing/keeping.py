"""Who keeps tensors for the backward pass: it changes where a checkpointed block begins."""

import torch


def keeping() -> tuple[object, ...]:
    """Return whether gradients are taken, and the hooks that save tensors.

    A checkpoint changes one of the two while its block runs, so what was equal before and now is
    run, and run again, as one piece.
    """
    if torch.compiler.is_compiling():
        return ()  # a graph has checkpoints of its own
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return torch.is_grad_enabled(), hooks
