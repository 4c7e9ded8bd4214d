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
        of the users' means, each user once, and `std_rows`. Rows with a value that is not finite
        are left out. Empty for any other method.
    """
    _, users = np.unique(rows.user_ids, return_inverse=True)
    counts = torch.zeros(int(users.max()) + 1, dtype=torch.float64)
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    sizes: dict[str, float] = {}
    for part in np.array_split(np.arange(len(rows)), range(batch_size, len(rows), batch_size)):
        found = adapted.modulations(rows.split, rows.rows[part].tolist())
        if not found:
            return []
        whole = torch.cat(list(found.values()), dim=1).isfinite().all(dim=1).cpu()
        own = torch.from_numpy(users[part])[whole]
        counts.index_add_(0, own, torch.ones(len(own), dtype=torch.float64))
        for kind, given in found.items():
            values = given.cpu()[whole].double()
            if kind not in sums:
                sums[kind] = values.new_zeros(len(counts), values.shape[1])
                squares[kind] = values.new_zeros(values.shape[1])
                sizes[kind] = 0.0
            sums[kind].index_add_(0, own, values)
            squares[kind] += values.square().sum(dim=0)
            sizes[kind] += float(values.abs().sum())
    seen, count = counts > 0, float(counts.sum())
    if not count:
        return []
    return [
        {
            "of": kind,
            "mean_abs": sizes[kind] / (count * total.shape[1]),
            "mean_abs_of_mean": float((mean := total.sum(dim=0) / count).abs().mean()),
            "std_users": float(
                (total[seen] / counts[seen, None]).var(dim=0, correction=0).mean().sqrt()
            ),
            "std_rows": float((squares[kind] / count - mean.square()).clamp(min=0).mean().sqrt()),
        }
        for kind, total in sums.items()
    ]
