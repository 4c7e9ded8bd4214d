"""Gated recurrent units over rows of unequal length, without work for padding.

`torch.nn.GRU` computes the same, but forms the gradients of the weights anew at every step, also
over packed sequences. Here they are one product over all steps.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def gru(layers: nn.GRU, inputs: Tensor, active: Sequence[int], newest: bool) -> Tensor:
    """States of the last layer.

    Rows are in order of length, the longest first, and end together: at step t the first
    `active[t]` rows have an item. Steps stand one after the other, without gaps.

    Args:
        layers: The weights. Its layers have one direction, biases and no dropout.
        inputs: float [sum of active, width].
        active: Number of rows at each step, none smaller than the one before.
        newest: Return the states of the last step only.

    Returns:
        float [sum of active, state], or [active[-1], state] of the last step.
    """
    for layer in range(layers.num_layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = (layers.get_parameter(f"{name}_l{layer}") for name in names)
        found = _Layer.apply(inputs, *weights, active, newest and layer == layers.num_layers - 1)
        assert isinstance(found, Tensor)
        inputs = found
    return inputs


class _Layer(torch.autograd.Function):
    """One layer: Cho et al. (2014), as `torch.nn.GRU` states it.

    r, z = sigmoid(W x + b + U h + c), n = tanh(W x + b + r * (U h + c)), h' = n + z * (h - n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        recurrent: Tensor,
        bias: Tensor,
        recurrent_bias: Tensor,
        active: Sequence[int],
        newest: bool,
    ) -> Tensor:
        count, width = len(inputs), recurrent.shape[1]
        # [count, 3 * width]: first the inputs' part of each gate, then the gates r, z, n themselves
        gates = torch.addmm(bias, inputs, weight.T)
        # The state that each step starts from, and after all steps the last one.
        states = inputs.new_empty(count + active[-1], width)
        states[: active[0]] = 0
        own_n = inputs.new_empty(count, width)  # U h + c of the gate n
        start = 0
        for rows, following in pairwise([*active, active[-1]]):
            end = start + rows
            gate, old = gates[start:end], states[start:end]
            own = torch.addmm(recurrent_bias, old, recurrent.T)
            gate[:, : 2 * width].add_(own[:, : 2 * width]).sigmoid_()
            own_n[start:end] = own[:, 2 * width :]
            n = gate[:, 2 * width :].addcmul_(gate[:, :width], own_n[start:end]).tanh_()
            torch.lerp(n, old, gate[:, width : 2 * width], out=states[end : end + rows])
            states[end + rows : end + following] = 0  # rows that begin with the next step
            start = end
        ctx.save_for_backward(inputs, weight, recurrent, gates, states, own_n)
        ctx.active, ctx.newest = active, newest
        return states[count:].clone() if newest else _after(states, active)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, recurrent, gates, states, own_n = ctx.saved_tensors
        count, width = own_n.shape
        backward = torch.ops.aten
        # Gradients of what each gate is computed from: the inputs' part of n, then what r, z and n
        # have from the state. r and z have the same from the inputs.
        found = torch.empty(count, 4 * width, dtype=inputs.dtype)
        from_state = found[:, width:]
        carried = grads[0].clone() if ctx.newest else torch.zeros_like(states[count:])
        end = count
        for rows in reversed(ctx.active):
            start = end - rows
            grad = carried[:rows]
            if not ctx.newest:
                grad = grad + grads[0][start:end]
            r, z, n = gates[start:end].split(width, dim=1)
            to_n, to_r, to_z, to_own_n = found[start:end].split(width, dim=1)
            kept = grad * z
            to_n.copy_(backward.tanh_backward(grad - kept, n))
            to_z.copy_(backward.sigmoid_backward(grad.mul(states[start:end] - n), z))
            to_r.copy_(backward.sigmoid_backward(to_n * own_n[start:end], r))
            torch.mul(to_n, r, out=to_own_n)
            carried = torch.addmm(kept, from_state[start:end], recurrent)
            end = start
        sums = found.sum(dim=0)
        from_inputs = found[:, : 3 * width]  # in the order n, r, z
        rolled = weight.roll(width, dims=0)
        return (
            from_inputs @ rolled if ctx.needs_input_grad[0] else None,
            (from_inputs.T @ inputs).roll(-width, dims=0),
            from_state.T @ states[:count],
            sums[: 3 * width].roll(-width),
            sums[width:],
            None,
            None,
        )


def _after(states: Tensor, active: Sequence[int]) -> Tensor:
    """The state after each step, from those before it and the last one."""
    ends, found = 0, []
    for rows in active:
        ends += rows
        found.append(states[ends : ends + rows])
    return torch.cat(found)
