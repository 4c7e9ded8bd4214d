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
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating import Gate
from peft_ilora.routing.images import ImageRows
from peft_ilora.routing.keeping import in_backward, keeping

KEYWORD = "routing_embeds"
"""The keyword of `forward` and `generate`."""
Owner = Literal["context", "generate", "forward"]
Memory = dict[tuple[Hashable, ...], Any]
"""What has been computed in a frame. A key begins with the name of its kind."""
_T = TypeVar("_T")
_OPEN: ContextVar[frozenset[object]] = ContextVar("_OPEN", default=frozenset())
"""Marks of the `model.routing` blocks that the running task is in: tasks share a thread."""


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
    """Rows of the model for each row of `embeds`, side by side, as `generate` repeats them for
    beams and returned sequences."""
    copies: int = 1
    """Copies of all these rows, one after the other, as guidance makes."""
    guided: bool = False
    """Whether the model's `generate` may double the batch for guidance."""
    sole: bool = False
    """Whether all that runs belongs to the one row that there is."""
    direct: bool = False
    """Whether the model's `generate` runs layers past its forwards on all rows, expanded or not."""
    detached: bool = False
    """Whether `generate` has expanded its rows, so that layers past its forwards may see a part."""
    images: ImageRows | None = None
    """Rows of the running forward's images; None: as those of the rest."""
    noise: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """[batch, num_experts] by adapter, standard normal: drawn once a forward, so that all layers,
    and the recomputation of a checkpointed block, see the same."""

    @property
    def batch(self) -> int:
        """Number of rows of `embeds`."""
        return self.embeds.shape[0]

    @property
    def rows(self) -> int:
        """Number of the model's rows."""
        return self.batch * self.times * self.copies

    def spread(
        self, given: Tensor, leading: Sequence[int], of_images: bool = False
    ) -> Tensor | None:
        """Give each row of a layer's input what its routing row has.

        Args:
            given: [..., batch, coefficients]
            leading: The input's shape without its features; one number may be batch and sequence,
                flattened.
            of_images: Whether the layer's rows are images.

        Returns:
            [..., leading[0], coefficients]; None where the input's rows do not match.
        """
        if not leading:
            return None
        count = leading[0]
        if self.sole:
            return given if count == 1 else given.repeat_interleave(count, dim=-2)
        if self.detached:
            return None
        if of_images and self.images is not None:
            return self.images.spread(self._spread(given, self.copies), count)
        copies, length = self.copies, 1
        if self.direct and count == self.batch:
            return given
        if count != self.rows:
            # No set: hashing a symbolic length would compile one graph for each length.
            flattened = self.lengths if len(leading) == 1 else ()
            if self.guided and count == 2 * self.rows:
                copies = 2
            elif any(count == self.rows * n for n in flattened):
                length = count // self.rows
            else:
                return None
        given = self._spread(given, copies)
        return given if length == 1 else given.repeat_interleave(length, dim=-2)

    def _spread(self, given: Tensor, copies: int) -> Tensor:
        """[..., batch, coefficients] -> [..., rows, coefficients]"""
        given = given if self.times == 1 else given.repeat_interleave(self.times, dim=-2)
        return given if copies == 1 else torch.cat([given] * copies, dim=-2)

    def of_rows(self, rows: Sequence[int]) -> "Routing":
        """Return the routing of some rows."""
        index = torch.tensor(rows, device=self.embeds.device)
        noise = {adapter: drawn[index] for adapter, drawn in self.noise.items()}
        return replace(self, embeds=self.embeds[index], noise=noise, sole=False)


@dataclass(frozen=True)
class Frame:
    """What layers read while it is on top of the stack."""

    routing: Routing | None = None
    adapter_names: Sequence[str] | None = None
    """The adapter of each row of a mixed batch; None: all rows have the active ones."""
    memory: Memory | None = None
    """What has been computed; None where embeddings or gates may change before the frame ends."""
    forward_of: str | None = None
    """The module whose forward's opening hook has pushed it, so that its closing hook pops it."""
    opened_as: Routing | None = None
    """The routing before `generate` expanded its rows."""
    mark: object = None
    """Of a `model.routing` block, in `_OPEN`."""
    opened_by: tuple[object, ...] = field(default_factory=keeping, compare=False)
    """Who kept tensors when it was opened. Where this has changed, a checkpointed block runs, and
    will run again without this frame."""


class RoutingState(threading.local):
    """The bindings of a model; each thread has its own.

    Args:
        contexts: Threads in which `model.routing` is open, of all threads.
        routed: Whether a forward has had a routing, in any thread: empty where none has.
    """

    def __init__(self, contexts: list[int], routed: list[bool]) -> None:  # once in each thread
        self.contexts = contexts
        self.routed = routed
        self.stack = [Frame()]
        """The last one is in force; the first one always stays."""
        self.last: Routing | None = None
        """The routing of the last forward that had one."""
        self.adapter_names: Sequence[str] | None = None
        """The adapter of each row of the mixed batch that is being run, if one is."""

    def __reduce__(self) -> tuple[type["RoutingState"], tuple[list[int], list[bool]]]:
        return RoutingState, ([], [])  # a copied model starts unbound

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
        return frame.routing.of_rows(rows)

    def coefficients(self, gate: Gate, adapter: str, place: int | None = None) -> Tensor:
        """Return what a gate makes of the routing in force; evaluated once a forward.

        Args:
            gate: The gate.
            adapter: Name of its adapter.
            place: The layer that asks, where each has coefficients of its own; where nothing is
                remembered, those of the others are not computed.

        Returns:
            [batch, coefficients]; of all layers where each has its own, [layers, batch,
            coefficients].
        """
        if place is not None and self._remembering() is None:
            return self._evaluate(gate, adapter, place)
        return self.remember(("coefficients", gate), partial(self._evaluate, gate, adapter))

    def _evaluate(self, gate: Gate, adapter: str, place: int | None = None) -> Tensor:
        routing = self.routing_of(adapter)
        assert routing is not None
        return gate(routing.embeds, routing.noise.get(adapter), place)

    def remember(self, key: tuple[Hashable, ...], compute: Callable[[], _T]) -> _T:
        """Compute something once a frame, with gradients and without; in a block that is
        checkpointed by its user anew, as when it is run again.
        """
        memory = self._remembering()
        if memory is None:
            return compute()
        told = (key, torch.is_grad_enabled())  # a part of a model may run without gradients
        found = memory.get(told)
        if found is None:
            found = memory[told] = compute()
        return found

    def _remembering(self) -> Memory | None:
        """Return the memory of the running frame; None: everything is computed anew."""
        frame = self.stack[-1]
        if torch.compiler.is_compiling() or frame.memory is None:
            return None
        return frame.memory if frame.opened_by[1:] == keeping()[1:] else None

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
        self.stack.append(Frame(routing, self.adapter_names, memory, opened_as=routing))
        try:
            yield
        finally:
            del self.stack[depth:]

    @contextmanager
    def context(self, routing: Routing) -> Iterator[None]:
        """Bind the routing of a `model.routing` block, and tell other threads of it."""
        thread, mark = threading.get_ident(), object()
        self.contexts.append(thread)
        _OPEN.set(_OPEN.get() | {mark})
        try:
            with self.bound(routing):
                self.stack[-1] = replace(self.stack[-1], mark=mark)
                yield
        finally:
            self.contexts.remove(thread)
            _OPEN.set(_OPEN.get() - {mark})

    def context_elsewhere(self) -> bool:
        """Whether `model.routing` is open in another thread only."""
        return bool(self.contexts) and threading.get_ident() not in self.contexts

    def of_another_task(self) -> bool:
        """Whether what is in force belongs to a `model.routing` of another task of this thread."""
        mark = self.stack[-1].mark
        return mark is not None and not torch.compiler.is_compiling() and mark not in _OPEN.get()

    def runs_again(self) -> bool:
        """Whether a backward pass runs a forward again, or a part, whose routing may have ended."""
        if torch.compiler.is_compiling() or not self.routed:
            return False
        return in_backward() and len(self.stack) == 1

    @property
    def generating(self) -> Routing | None:
        """The routing of the `generate` that runs now, outside of its forwards."""
        frame = self.stack[-1]
        routing = None if frame.forward_of is not None else frame.routing
        return routing if routing is not None and routing.owner == "generate" else None

    @property
    def begun(self) -> Routing | None:
        """The routing that this `generate` began with, before it expanded its rows."""
        return None if self.generating is None else self.stack[-1].opened_as

    def expand(self, times: int) -> None:
        """Let the running `generate` have `times` rows for each row that it began with."""
        begun = self.begun
        if begun is not None:
            expanded = replace(begun, times=begun.times * times, detached=not begun.direct)
            self.stack[-1] = replace(self.stack[-1], routing=expanded, memory={})

    def restart(self, routing: Routing) -> None:
        """Let the running `generate` begin again, perhaps with fewer rows."""
        frame = self.stack[-1]
        self.stack[-1] = replace(frame, routing=routing, opened_as=routing, memory={})

    def open_forward(self, routing: Routing | None, name: str = "") -> None:
        """Bind `routing` until `close_forward` of the module with this name in the base model."""
        lasting = routing is not None and routing.owner == "generate" and routing.images is None
        memory = self.stack[-1].memory if lasting and not torch.is_grad_enabled() else {}
        if routing is not None:
            self.last = routing
            if not torch.compiler.is_compiling() and not self.routed:  # a graph would watch it
                self.routed.append(True)
        self.stack.append(Frame(routing, self.adapter_names, memory, forward_of=name))

    def close_forward(self, name: str = "") -> None:
        """End the running forward. Does nothing where its opening failed."""
        if self.stack[-1].forward_of == name:
            self.stack.pop()

    def drop_aborted_forward(self) -> None:
        """Forget a forward that an interrupt cut off before its closing hook."""
        while self.stack[-1].forward_of is not None:
            self.stack.pop()


def for_forward(
    routing: Routing, inputs: list[Tensor], training: bool, configs: dict[str, ILoRAConfig]
) -> Routing:
    """Return the routing as the layers of one forward see it.

    Args:
        routing: The routing in force; its rows are the inputs'.
        inputs: The forward's tensors, [rows, ...] and [rows, length, ...]; the leading one first.
        training: Whether noise is drawn for the gates that want it.
        configs: Configurations of the adapters that read it.
    """
    lengths = tuple(tensor.shape[1] for tensor in inputs if tensor.dim() > 1)
    if any(tensor.shape[0] != inputs[0].shape[0] for tensor in inputs):
        lengths = ()  # images packed over rows: a flattened input may be theirs
    noise = {
        name: torch.randn(routing.batch, config.num_experts, device=routing.embeds.device)
        for name, config in configs.items()
        if training and config.noise_std > 0
    }
    return replace(
        routing,
        lengths=lengths,
        guided=False,
        direct=False,
        detached=False,
        sole=routing.batch == 1,
        images=None,
        noise=noise,
    )
