"""Gradients of an adapter's loss on groups of rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from recipes.llm.adapted import adapted_model
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.language_model import LanguageModel, best_device, token_embeddings
from recipes.llm.starts import start_adapter
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.projector import new_projector
from recipes.prompting.store import PromptStore
from recipes.recommenders.vectors import Vectors


@contextmanager
def untrained(
    plan: AdapterPlan, llm: LanguageModel, vectors: Vectors | None
) -> Iterator[HybridModel]:
    """The adapter and projector with which the plan's training starts, removed at the end."""
    projector = items = None
    if vectors is not None:
        entered = token_embeddings(llm.base)
        items, projector = vectors.items, new_projector(vectors.items, entered, plan.seed)
    torch.manual_seed(plan.seed)
    with llm.wrapped(plan.peft) as model:
        prefix = start_adapter(model, plan, llm.base)
        yield HybridModel(model, projector, items, plan.routed_by, None, prefix).to(best_device())


@contextmanager
def trained(
    plan: AdapterPlan,
    llm: LanguageModel,
    store: PromptStore,
    vectors: Vectors | None,
    folder: Path,
) -> Iterator[HybridModel]:
    """The trained adapter and its projector, removed at the end."""
    with adapted_model(plan, llm, store, vectors, folder) as adapted:
        yield adapted.hybrid


def gradients(
    hybrid: HybridModel, collator: TrainingCollator, groups: Sequence[Sequence[int]], batch: int
) -> dict[str, Tensor]:
    """Gradients of the mean loss of some samples with respect to the adapter's A and B.

    Dropout is off, and prompts are hybrid.

    Args:
        hybrid: The adapted model.
        collator: Its training samples.
        groups: Numbers of the samples of each of g groups.
        batch: How many samples are run at once.

    Returns:
        Module type, such as `q_proj` -> float32 [g, values], the mean over the layers' modules of
        that type of the gradients of A and B, in one vector.

    Raises:
        ValueError: The adapter has no A and B.
    """
    hybrid.eval()
    parts = {name: p for name, p in hybrid.llm.named_parameters() if ".lora_" in name}
    if not parts:
        raise ValueError(f"{type(hybrid.llm).__name__} has no A and B whose gradients are compared")
    for parameter in parts.values():
        parameter.requires_grad_(True)
    rows = [_gradient(hybrid, collator, samples, list(parts.values()), batch) for samples in groups]
    # Name of the matrix (`lora_A`) in a type of module (`q_proj`) -> its places among the parts.
    places: dict[str, dict[str, list[int]]] = {}
    for place, name in enumerate(parts):
        module, _, matrix = name.partition(".lora_")
        kind = module.rpartition(".")[2]
        places.setdefault(kind, {}).setdefault(matrix, []).append(place)
    return {
        kind: torch.stack(
            [
                torch.cat(
                    [
                        torch.stack([row[place] for place in own]).mean(dim=0).flatten().cpu()
                        for own in matrices.values()
                    ]
                )
                for row in rows
            ]
        )
        for kind, matrices in places.items()
    }


def _gradient(
    hybrid: HybridModel,
    collator: TrainingCollator,
    samples: Sequence[int],
    parameters: Sequence[Tensor],
    batch: int,
) -> list[Tensor]:
    """Gradient of the mean loss of the samples with respect to each parameter."""
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        inputs = {name: one.to(best_device()) for name, one in collator(part).items()}
        with torch.enable_grad():
            loss = hybrid(**inputs, hybrid=True)["loss"] * (len(part) / len(samples))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, one in zip(sums, found, strict=True):
            if one is not None:
                total += one
    return sums
