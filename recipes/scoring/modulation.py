"""Summarises what a gate without experts adds to plain LoRA: how much, and how differently."""

from typing import Any

import numpy as np
import torch

from recipes.llm.prompted import PromptedModel
from recipes.scoring.rows import EvaluatedRows


@torch.inference_mode()
def modulation_summary(
    adapted: PromptedModel, rows: EvaluatedRows, batch_size: int
) -> list[dict[str, Any]]:
    """Figures of the gate's values in some rows, of all modules and rank coordinates alike.

    Args:
        adapted: A model whose gate gives values (`PromptedModel.modulations`).
        rows: The rows.
        batch_size: How many rows the gate reads at once.

    Returns:
        For each kind of value `of`: `mean_abs`; `mean_abs_of_mean`, the size of the mean over
        rows, which all users share; and standard deviations, roots of mean variances: `std_users`
        of the users' means, each user once, and `std_rows`. Empty for any other method.
    """
    _, users, counts = np.unique(rows.user_ids, return_inverse=True, return_counts=True)
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    sizes: dict[str, float] = {}
    for part in np.array_split(np.arange(len(rows)), range(batch_size, len(rows), batch_size)):
        found = adapted.modulations(rows.split, rows.rows[part].tolist())
        for kind, values in found.items():
            values = values.double().cpu()
            if kind not in sums:
                sums[kind] = values.new_zeros(len(counts), values.shape[1])
                squares[kind] = values.new_zeros(values.shape[1])
                sizes[kind] = 0.0
            sums[kind].index_add_(0, torch.from_numpy(users[part]), values)
            squares[kind] += values.square().sum(dim=0)
            sizes[kind] += float(values.abs().sum())
    own = torch.from_numpy(counts)[:, None]
    return [
        {
            "of": kind,
            "mean_abs": sizes[kind] / (len(rows) * total.shape[1]),
            "mean_abs_of_mean": float((mean := total.sum(dim=0) / len(rows)).abs().mean()),
            "std_users": float((total / own).var(dim=0, correction=0).mean().sqrt()),
            "std_rows": float(
                (squares[kind] / len(rows) - mean.square()).clamp(min=0).mean().sqrt()
            ),
        }
        for kind, total in sums.items()
    ]
