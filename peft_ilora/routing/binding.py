"""The routing of a forward: which routing embedding each row of the batch has.

A `Routing` is bound for a stretch of execution and read by the layers. The stack of bindings is
kept per thread, so two threads that share a model each see their own. What a forward computes is
remembered in the frame that it runs in, and ends with it; only the routing of the last forward is
kept, for statistics. The recomputation of a checkpointed block binds its routing anew
(`peft_ilora/routing/checkpointing.py`).
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating import GateForm

KEYWORD = "routing_embeds"
"""The keyword of `forward` and `generate`."""
Owner = Literal["context", "generate", "forward"]
Memory = dict[tuple[Hashable, ...], Any]
"""What has been computed in a frame. A key begins with the name of its kind."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Routing:
    """The routing embeddings in force, and how rows of a layer's input map to them."""

    embeds: Tensor
    """[batch, routing_dim], floating point; for a hard gate [batch], int64."""
    owner: Owner
    """Who bound it: `model.routing`, `generate`, or a forward's keyword."""
    lengths: tuple[int, ...] = ()
    """Sequence lengths of the running forward: a layer may see batch and sequence flattened."""
    times: int = 1
    """Rows of the running forward for each row of `embeds`: `generate` repeats rows for beams and
    returned sequences, and keeps the repeated ones together."""
    noise: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """[batch, num_experts] by adapter, standard normal: drawn once a forward, so that all layers,
    and the recomputation of a checkpointed block, see the same."""

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.embeds.shape[0]

    def repeats(self, leading: Sequence[int]) -> int | None:
        """Return how often each row is repeated to match a layer's input; None: it does not match.

        Args:
            leading: The input's shape without its features; one number may be batch and sequence,
                flattened.
        """
        if not leading:
            return None
        if leading[0] == self.batch:
            return 1
        times, rest = divmod(leading[0], self.batch)
        if rest:
            return None
        if times == self.times:
            return times
        # No set: hashing a symbolic length would compile one graph for each length.
        flattened = (length * n for length in self.lengths for n in (1, self.times))
        return times if len(leading) == 1 and any(times == n for n in flattened) else None

    def of_rows(self, rows: Sequence[int], adapter: str) -> "Routing":
        """Return the routing of some rows: those of one adapter in a mixed batch."""
        index = torch.tensor(rows, device=self.embeds.device)
        noise = {adapter: self.noise[adapter][index]} if adapter in self.noise else {}
        return replace(self, embeds=self.embeds[index], noise=noise)


@dataclass(frozen=True)
class Frame:
    """What layers read while it is on top of the stack."""

    routing: Routing | None = None
    adapter_names: Sequence[str] | None = None
    """The adapter of each row of a mixed batch; None: all rows have the active ones."""
    memory: Memory | None = None
    """What has been computed; None where embeddings or gates may change before the frame ends."""
    is_forward: bool = False
    """Whether a forward's opening hook has pushed it, so that the closing hook pops it."""


class RoutingState(threading.local):
    """The bindings of a model; each thread has its own."""

    def __init__(self) -> None:  # runs once in each thread
        self.stack = [Frame()]
        """The last one is in force; the first one always stays."""
        self.last: Routing | None = None
        """The routing of the last forward that had one."""
        self.adapter_names: Sequence[str] | None = None
        """The adapter of each row of the mixed batch that is being run, if one is."""

    def __reduce__(self) -> tuple[type["RoutingState"], tuple[()]]:
        return RoutingState, ()  # a copied model starts unbound

    @property
    def current(self) -> Routing | None:
        """The routing in force."""
        return self.stack[-1].routing

    # ---------------------------------------------------------------- what layers read

    def routing_of(self, adapter: str) -> Routing | None:
        """Return the routing in force, of the rows that an adapter has in a mixed batch."""
        frame = self.stack[-1]
        if frame.routing is None or frame.adapter_names is None:
            return frame.routing
        rows = [row for row, name in enumerate(frame.adapter_names) if name == adapter]
        return frame.routing.of_rows(rows, adapter)

    def coefficients(self, gate: GateForm, adapter: str) -> Tensor:
        """Return what a gate makes of the routing in force; evaluated once a forward.

        Args:
            gate: The gate.
            adapter: Name of its adapter.

        Returns:
            [batch, coefficients]
        """

        def evaluate() -> Tensor:
            routing = self.routing_of(adapter)
            assert routing is not None
            return gate(routing.embeds, routing.noise.get(adapter))

        return self.remember(("coefficients", gate), evaluate)

    def remember(self, key: tuple[Hashable, ...], compute: Callable[[], _T]) -> _T:
        """Compute something once a frame, with gradients and without."""
        memory = self.stack[-1].memory
        if memory is None or torch.compiler.is_compiling():
            return compute()
        told = (key, torch.is_grad_enabled())  # a part of a model may run without gradients
        found = memory.get(told)
        if found is None:
            found = memory[told] = compute()
        return found

    # ---------------------------------------------------------------- who binds

    @contextmanager
    def mixed(self, adapter_names: Sequence[str] | None) -> Iterator[None]:
        """Let each row of the block's batches have an adapter of its own."""
        outer = self.adapter_names
        self.adapter_names = adapter_names
        try:
            yield
        finally:
            self.adapter_names = outer

    @contextmanager
    def bound(self, routing: Routing | None, memory: Memory | None = None) -> Iterator[None]:
        """Bind `routing` for the block, and restore what was bound however the block ends.

        Args:
            routing: None hides what is bound outside.
            memory: The frame's; see `Frame`.
        """
        depth = len(self.stack)
        self.stack.append(Frame(routing, self.adapter_names, memory))
        try:
            yield
        finally:
            del self.stack[depth:]

    def open_forward(self, routing: Routing | None) -> None:
        """Bind `routing` until `close_forward`."""
        lasting = routing is not None and routing.owner == "generate"
        memory = self.stack[-1].memory if lasting and not torch.is_grad_enabled() else {}
        if routing is not None:
            self.last = routing
        self.stack.append(Frame(routing, self.adapter_names, memory, is_forward=True))

    def close_forward(self) -> None:
        """End the running forward. Does nothing where its opening failed."""
        if self.stack[-1].is_forward:
            self.stack.pop()

    def drop_aborted_forward(self) -> None:
        """Forget a forward that an interrupt cut off before its closing hook."""
        while self.stack[-1].is_forward:
            self.stack.pop()


def for_forward(
    routing: Routing, inputs: list[Tensor], training: bool, configs: dict[str, ILoRAConfig]
) -> Routing:
    """Return the routing as the layers of one forward see it.

    Args:
        routing: The routing in force; its rows match the inputs'.
        inputs: The forward's tensors, [rows, ...] and [rows, length, ...]; the leading one first.
        training: Whether noise is drawn for the gates that want it.
        configs: Configurations of the adapters that read it.
    """
    rows = inputs[0].shape[0] if inputs else routing.batch
    lengths = tuple(tensor.shape[1] for tensor in inputs if tensor.dim() > 1)
    if any(tensor.shape[0] != rows for tensor in inputs):
        lengths = ()  # images packed over rows: a flattened input may be theirs
    noise = {
        name: torch.randn(routing.batch, config.num_experts, device=routing.embeds.device)
        for name, config in configs.items()
        if training and config.noise_std > 0
    }
    return replace(routing, lengths=lengths, times=rows // routing.batch, noise=noise)
