"""The routing of a forward: which embedding each row of the batch is mixed by.

A `Routing` is bound for a stretch of execution and read by the layers. The stack of bindings is
kept per thread, so two threads that share a model see their own. Nothing outlives its binding; the
recomputation of a checkpointed block is bound anew (`peft_ilora/hooks.py`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.gate import Gate

Owner = Literal["context", "generate", "forward"]


@dataclass(frozen=True)
class Routing:
    """The routing embeddings in force, and how rows of a layer's input map to them."""

    embeds: Tensor
    """[batch, routing_dim], floating point."""
    owner: Owner
    """Who bound it: `model.routing`, `generate`, or a forward's keyword."""
    lengths: frozenset[int] = frozenset()
    """Sequence lengths of the running forward; a layer may see batch and sequence flattened."""
    times: int = 1
    """Rows of the running forward for each row of `embeds`: `generate` repeats them for beams and
    returned sequences, neighbours together."""
    scales: dict[tuple[Any, ...], Tensor] | None = field(default=None, compare=False)
    """Rank scales already computed, where neither gradients nor weights can change in between."""

    @property
    def batch(self) -> int:
        """Rows."""
        return self.embeds.shape[0]

    def repeats(self, shape: torch.Size) -> int | None:
        """How often each row of `embeds` is repeated to match a layer's input; None: it is not.

        Args:
            shape: Of the input, batch first: [rows, ..., features].
        """
        rows = shape[0]
        if rows == self.batch:
            return 1
        times, rest = divmod(rows, self.batch)
        if rest:
            return None
        if times == self.times:
            return times
        flattened = {length * n for length in self.lengths for n in (1, self.times)}
        return times if len(shape) == 2 and times in flattened else None

    def rank_scale(
        self, gate: Gate, rank: int, scaling: float, x: Tensor, dtype: torch.dtype, name: str
    ) -> Tensor:
        """`scaling * repeat(w(z), rank)` for the rows of a layer's input.

        Args:
            gate: Maps `embeds` to expert weights.
            rank: Rank of one expert.
            scaling: alpha over rank.
            x: The layer's input, [rows, ..., features].
            dtype: Of the result.
            name: The layer's, for the error.

        Returns:
            [rows, 1, ..., num_experts * rank], ready to multiply the rank coordinates.

        Raises:
            ValueError: The input's rows do not correspond to the routing's.
        """
        times = self.repeats(x.shape)
        if times is None:
            raise ValueError(
                f"routing_embeds has {self.batch} rows but {name} got an input of shape "
                f"{tuple(x.shape)}, which is neither that batch nor a flattening of it: give one "
                "routing row for each input row, or leave this module out by exclude_modules"
            )
        cached = self.scales is not None and not torch.is_grad_enabled()
        key = (id(gate), rank, scaling, times, x.dim(), dtype, x.device)
        if cached and self.scales is not None and key in self.scales:
            return self.scales[key]
        scale = (gate(self.embeds) * scaling).to(x.device, dtype)
        scale = scale.repeat_interleave(rank, dim=1)
        if times > 1:
            scale = scale.repeat_interleave(times, dim=0)
        scale = scale.view(scale.shape[0], *[1] * (x.dim() - 2), scale.shape[1])
        if cached and self.scales is not None:
            self.scales[key] = scale
        return scale


@dataclass(frozen=True)
class _Frame:
    routing: Routing | None
    forward: bool
    """Pushed by a forward's opening hook, so popped by its closing one."""


class _Threads(threading.local):
    def __init__(self) -> None:  # runs once in each thread
        self.stack: list[_Frame] = []


class RoutingState:
    """The bindings of a model, a stack for each thread."""

    def __init__(self) -> None:
        self._threads = _Threads()

    def __reduce__(self) -> tuple[type["RoutingState"], tuple[()]]:
        return RoutingState, ()  # a copied model starts unbound

    @property
    def _stack(self) -> list[_Frame]:
        return self._threads.stack

    @property
    def current(self) -> Routing | None:
        """The routing in force in this thread."""
        stack = self._stack
        return stack[-1].routing if stack else None

    @contextmanager
    def bound(self, routing: Routing | None) -> Iterator[None]:
        """Bind `routing` for the block, whatever the block leaves behind."""
        depth = len(self._stack)
        self._stack.append(_Frame(routing, forward=False))
        try:
            yield
        finally:
            del self._stack[depth:]

    def open_forward(self, routing: Routing | None) -> None:
        """Bind `routing` until `close_forward`."""
        self._stack.append(_Frame(routing, forward=True))

    def close_forward(self) -> None:
        """End the running forward. Does nothing where its opening failed."""
        if self._stack and self._stack[-1].forward:
            self._stack.pop()

    def drop_aborted_forward(self) -> None:
        """Forget a forward that an interrupt cut off before its closing hook."""
        while self._stack and self._stack[-1].forward:
            self._stack.pop()


def checked_embeds(routing_embeds: Any, configs: dict[str, ILoRAConfig]) -> Tensor:
    """Validate routing embeddings before anything runs.

    Args:
        routing_embeds: Should be [batch, routing_dim], floating point and finite.
        configs: The active adapters' configurations, by adapter name.

    Returns:
        The same tensor.

    Raises:
        TypeError: Not a tensor, or not of a floating-point dtype.
        ValueError: Wrong number of dimensions, wrong width, empty, NaN or infinite. Off the CPU the
            last check runs on the device, without waiting for it, and shows as a RuntimeError.
    """
    if not isinstance(routing_embeds, Tensor):
        raise TypeError(
            f"routing_embeds is a {type(routing_embeds).__name__}; pass a float tensor of shape "
            "[batch, routing_dim]"
        )
    if not routing_embeds.is_floating_point():
        raise TypeError(
            f"routing_embeds has dtype {routing_embeds.dtype}; pass a float tensor, for instance "
            "routing_embeds.float()"
        )
    shape = tuple(routing_embeds.shape)
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(
            f"routing_embeds has shape {shape}; pass [batch, routing_dim], one row for each row of "
            "the batch (a single vector: routing_embeds.unsqueeze(0))"
        )
    check_width(routing_embeds, configs)
    _check_finite(routing_embeds)
    return routing_embeds


def check_width(embeds: Tensor, configs: dict[str, ILoRAConfig]) -> None:
    """Check the width of routing embeddings, [batch, routing_dim], against active adapters.

    Raises:
        ValueError: It fits not all of them.
    """
    widths = {name: config.routing_dim for name, config in configs.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"the active adapters differ in routing_dim ({widths}), so no routing_embeds fits all: "
            "activate one of them by set_adapter"
        )
    for name, width in widths.items():
        if embeds.shape[1] != width:
            raise ValueError(
                f"routing_embeds has shape {tuple(embeds.shape)} but adapter {name!r} was made "
                f"with routing_dim={width}: pass [batch, {width}]"
            )


def _check_finite(embeds: Tensor) -> None:
    finite = torch.isfinite(embeds).all()
    if embeds.device.type != "cpu" or torch.compiler.is_compiling():
        # Reading the answer would make the CPU wait for the device (or break a compiled graph).
        torch._assert_async(finite, "routing_embeds contains NaN or infinity")  # pyright: ignore[reportPrivateImportUsage]
    elif not finite:
        rows = (~torch.isfinite(embeds)).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"routing_embeds contains NaN or infinity in rows {rows[:10]}")


def check_rows(routing: Routing, rows: int) -> None:
    """Check the batch size of a model's input against the routing.

    Raises:
        ValueError: They do not match.
    """
    expands = routing.owner == "generate" and rows % routing.batch == 0
    if rows != routing.batch and not expands:
        raise ValueError(
            f"routing_embeds has {routing.batch} rows but the model's input has {rows}: "
            "give one routing row for each input row"
        )


def for_forward(routing: Routing, inputs: list[Tensor]) -> Routing:
    """The routing as the layers of one forward see it.

    Args:
        routing: In force.
        inputs: The forward's tensors, [rows, ...] and [rows, length, ...]; the leading one first.

    Raises:
        ValueError: The rows do not match the routing's.
    """
    rows = inputs[0].shape[0] if inputs else routing.batch
    check_rows(routing, rows)
    lengths = frozenset(tensor.shape[1] for tensor in inputs if tensor.dim() > 1)
    scales = routing.scales if routing.owner == "generate" else {}
    return replace(routing, lengths=lengths, times=rows // routing.batch, scales=scales)
