"""The routing of a forward: which embedding each row of the batch is mixed by.

A `Routing` is bound for a stretch of execution and read by the layers. The stack of bindings is
kept per thread, so two threads that share a model see their own. Nothing outlives its binding but
the last forward's routing, kept for statistics; the recomputation of a checkpointed block is bound
anew (`peft_ilora/hooks.py`).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from peft_ilora.config import ILoRAConfig
from peft_ilora.coordinates import Coordinates
from peft_ilora.gate import Gate, HardGate
from peft_ilora.siblings import Offers

Owner = Literal["context", "generate", "forward"]


Rows = tuple[int, bool, int]
"""What a layer's input tells of the batch: the size of its first dimension; whether batch and
sequence may lie flattened in it; how many dimensions lie between it and the rank coordinates."""


@dataclass(frozen=True)
class Routing:
    """The routing embeddings in force, and how rows of a layer's input map to them."""

    embeds: Tensor
    """[batch, routing_dim], floating point; for a hard gate [batch], int64."""
    owner: Owner
    """Who bound it: `model.routing`, `generate`, or a forward's keyword."""
    lengths: tuple[int, ...] = ()
    """Sequence lengths of the running forward; a layer may see batch and sequence flattened."""
    times: int = 1
    """Rows of the running forward for each row of `embeds`: `generate` repeats them for beams and
    returned sequences, neighbours together."""
    noise: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """[batch, num_experts] by adapter, standard normal: drawn once a forward, so that all layers,
    and the recomputation of a checkpointed block, see the same."""
    weights: dict[int, Tensor] = field(default_factory=dict, compare=False)
    """Expert weights by gate (its id), where a checkpointed block has been handed them."""
    memo: dict[tuple[Any, ...], Tensor] | None = field(default=None, compare=False)
    """What has been computed already, where neither gates nor embeddings can change in between."""

    @property
    def batch(self) -> int:
        """Rows."""
        return self.embeds.shape[0]

    def repeats(self, rows: Rows) -> int | None:
        """How often each row of `embeds` is repeated to match a layer's input; None: it is not."""
        leading, may_be_flattened, _ = rows
        if leading == self.batch:
            return 1
        times, rest = divmod(leading, self.batch)
        if rest:
            return None
        if times == self.times:
            return times
        # No set: hashing a symbolic length would compile one graph for each length.
        flattened = (length * n for length in self.lengths for n in (1, self.times))
        return times if may_be_flattened and any(times == n for n in flattened) else None

    def of_rows(self, chosen: Sequence[int], adapter: str) -> "Routing":
        """The routing of some rows: those of one adapter in a mixed batch."""
        index = torch.tensor(chosen, device=self.embeds.device)
        noise = {adapter: self.noise[adapter][index]} if adapter in self.noise else {}
        return replace(self, embeds=self.embeds[index], noise=noise, weights={})

    def rank_scale(
        self,
        gate: Gate | HardGate,
        adapter: str,
        coordinates: Coordinates,
        scaling: float,
        rows: Rows,
        like: Tensor,
    ) -> Tensor | None:
        """`scaling * spread(w(z))`, each row repeated to match a layer's input.

        Args:
            gate: Maps `embeds` to expert weights.
            adapter: Its name.
            coordinates: Of the layer.
            scaling: alpha over rank.
            rows: Of the input.
            like: The result takes its dtype and device.

        Returns:
            [rows, 1, ..., sum of ranks]; None where the input's rows do not correspond.
        """
        times = self.repeats(rows)
        if times is None:
            return None
        weights = self.expert_weights(gate, adapter) * scaling
        scale = coordinates.spread(weights.to(like.device, like.dtype))
        scale = scale if times == 1 else scale.repeat_interleave(times, dim=0)
        return scale.view(scale.shape[0], *[1] * rows[2], scale.shape[1])

    def expert_weights(self, gate: Gate | HardGate, adapter: str) -> Tensor:
        """`w(z)` of each row, [batch, num_experts]; evaluated once a forward."""
        if id(gate) in self.weights:
            return self.weights[id(gate)]
        memo = None if torch.compiler.is_compiling() else self.memo
        key = (gate, torch.is_grad_enabled())  # a part of a model may run without gradients
        found = None if memo is None else memo.get(key)
        if found is None:
            found = gate(self.embeds, self.noise.get(adapter))
            if memo is not None:
                memo[key] = found
        return found


@dataclass(frozen=True)
class Frame:
    """What layers read while it is on top of the stack."""

    routing: Routing | None = None
    adapter_names: Sequence[str] | None = None
    """The adapter of each row of a mixed batch; None: all rows have the active ones."""
    forward: bool = False
    """Pushed by a forward's opening hook, so popped by its closing one."""
    block: bool = False
    """Pushed for a checkpointed block, in a forward or for its recomputation."""
    offers: Offers | None = None
    """What layers have computed for others that read the same input, until the frame ends."""


class RoutingState(threading.local):
    """The bindings of a model; each thread has its own."""

    def __init__(self) -> None:  # runs once in each thread
        self.stack = [Frame()]
        """The last one is in force; the first one always stays."""
        self.last: Routing | None = None
        """The routing of the last forward that had one."""
        self.adapter_names: Sequence[str] | None = None
        """The adapter of each row of a mixed batch; None: all rows have the active ones."""
        self._recomputed: tuple[int, Offers] = (-1, {})

    def __reduce__(self) -> tuple[type["RoutingState"], tuple[()]]:
        return RoutingState, ()  # a copied model starts unbound

    @property
    def current(self) -> Routing | None:
        """The routing in force."""
        return self.stack[-1].routing

    @property
    def offers(self) -> Offers | None:
        """None where nothing is shared: in mixed batches, whose rows PEFT copies, and outside of
        forwards, where nothing would end an offer.
        """
        frame, backward = self.stack[-1], torch._C._current_graph_task_id()
        if frame.adapter_names is not None:
            return None
        within = frame.forward or frame.block
        if not within and backward != -1:  # a model that checkpoints by itself recomputes
            if self._recomputed[0] != backward:
                self._recomputed = (backward, {})
            return self._recomputed[1]
        return frame.offers

    @contextmanager
    def mixed(self, adapter_names: Sequence[str] | None) -> Iterator[None]:
        """Let each row of the block's batches have its own adapter."""
        outer = self.adapter_names
        self.adapter_names = adapter_names
        try:
            yield
        finally:
            self.adapter_names = outer

    @contextmanager
    def bound(self, routing: Routing | None, shares: bool | None = None) -> Iterator[None]:
        """Bind `routing` for the block, whatever the block leaves behind.

        Args:
            routing: None hides what is bound outside.
            shares: Of a checkpointed block, whether its layers compute for each other.
        """
        depth, offers = len(self.stack), {} if shares else None
        block = shares is not None
        self.stack.append(Frame(routing, self.adapter_names, block=block, offers=offers))
        try:
            yield
        finally:
            del self.stack[depth:]

    def open_forward(self, routing: Routing | None) -> None:
        """Bind `routing` until `close_forward`."""
        if routing is not None:
            holds_graph = torch.is_grad_enabled() and routing.memo is not None
            self.last = replace(routing, memo=None) if holds_graph else routing
        self.stack.append(Frame(routing, self.adapter_names, forward=True, offers={}))

    def close_forward(self) -> None:
        """End the running forward. Does nothing where its opening failed."""
        if self.stack[-1].forward:
            self.stack.pop()

    def drop_aborted_forward(self) -> None:
        """Forget a forward that an interrupt cut off before its closing hook."""
        while self.stack[-1].forward:
            self.stack.pop()


def for_forward(
    routing: Routing, inputs: list[Tensor], training: bool, configs: dict[str, ILoRAConfig]
) -> Routing:
    """The routing as the layers of one forward see it.

    Args:
        routing: In force; its rows match the inputs'.
        inputs: The forward's tensors, [rows, ...] and [rows, length, ...]; the leading one first.
        training: Whether noise is drawn for the gates that want it.
        configs: Of the adapters that read it.
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
    lasting = routing.owner == "generate" and not torch.is_grad_enabled()
    memo = routing.memo if lasting else {}
    return replace(routing, lengths=lengths, times=rows // routing.batch, noise=noise, memo=memo)
