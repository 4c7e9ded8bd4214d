"""What torch tells of the pass that runs: who keeps tensors, and whether it is a backward pass."""

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


def in_backward() -> bool:
    """Whether a backward pass runs in this thread, which may run a checkpointed block again."""
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportAttributeAccessIssue]
