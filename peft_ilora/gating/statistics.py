"""Figures of coefficients: of expert weights, and of any values; terms that a trainer may add."""

import math

import torch
from torch import Tensor


def entropy(weights: Tensor) -> Tensor:
    """Return the mean entropy in nats, from 0 (one expert a row) to log(num_experts).

    Args:
        weights: [rows, num_experts], each row a distribution.
    """
    floor = torch.finfo(weights.dtype).tiny  # a weight of zero adds nothing, also to gradients
    return -(weights * weights.clamp_min(floor).log()).sum(dim=-1).mean()


def load_balancing(weights: Tensor, top_k: int = 1) -> Tensor:
    """Return the load-balancing term `K sum_k f_k P_k`: 1 where the load is even, up to K.

    f is the share of the rows' choices that fell on an expert, P its mean weight; gradients reach P
    (Fedus et al., arXiv 2101.03961, Eq. 4 to 6).

    Args:
        weights: [rows, num_experts], each row a distribution.
        top_k: How many experts a row chooses: those of its largest weights.
    """
    experts = weights.shape[-1]
    share = _chosen(weights, top_k).mean(dim=0)
    return experts * (share * weights.mean(dim=0)).sum()


@torch.no_grad()
def statistics(weights: Tensor) -> dict[str, float | list[float]]:
    """Describe expert weights by plain numbers.

    Args:
        weights: [rows, num_experts], each row a distribution.

    Returns:
        rows; utilisation (mean weight of each expert); chosen (share of rows in which an expert has
        the largest weight); entropy and max_entropy in nats.
    """
    weights = weights.float()
    return {
        "rows": weights.shape[0],
        "utilisation": weights.mean(dim=0).tolist(),
        "chosen": _chosen(weights, 1).mean(dim=0).tolist(),
        "entropy": entropy(weights).item(),
        "max_entropy": math.log(weights.shape[-1]),
    }


def _chosen(weights: Tensor, top_k: int) -> Tensor:
    """[rows, num_experts]: 1/top_k where an expert is among a row's largest, else 0."""
    chosen = weights.topk(top_k, dim=-1).indices
    return torch.zeros_like(weights).scatter(-1, chosen, 1 / top_k)


@torch.no_grad()
def moments(name: str, values: Tensor) -> dict[str, float | list[float]]:
    """Describe values by their mean, standard deviation and largest magnitude.

    Args:
        name: Begins the keys: `<name>_mean`, `<name>_std`, `<name>_largest`.
        values: Of any shape; all of them count alike.
    """
    values = values.float()
    return {
        f"{name}_mean": values.mean().item(),
        f"{name}_std": values.std(correction=0).item(),
        f"{name}_largest": values.abs().max().item(),
    }


def deviation(values: Tensor) -> Tensor:
    """Return the mean square of what takes an instance away from plain LoRA."""
    return values.square().mean()
