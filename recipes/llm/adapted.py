"""A language model with a trained adapter, ready to answer the prompts of a split."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.data.splits import SplitName
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.language_model import LanguageModel, best_device, token_embeddings
from recipes.llm.prompted import PromptedModel, PromptInputs
from recipes.llm.train_adapter import ADAPTER_FOLDER
from recipes.prompting.encoding import EncodedPrompts
from recipes.prompting.projector import Projector
from recipes.prompting.store import PromptStore
from recipes.recommenders.vectors import Vectors

ADDED: dict[str, tuple[str, ...]] = {
    "sigmoid": ("factor",),
    "scale": ("scale",),
    "shift": ("shift",),
    "scale_shift": ("scale", "shift"),
    "square": ("matrix",),
}
"""The kinds of values that a gate gives in each `gate_form` without experts."""


class AdaptedModel(PromptedModel):
    """A language model with one trained adapter, and the prompts of its run.

    Args:
        hybrid: The language model with adapter and projector, in evaluation mode.
        store: Prompts and answers.
        vectors: Vectors of the recommender; None if the adapter reads none.
        prompt_history: How many of the newest history items a prompt shows, as in training.
        user_slot: Whether the prompt has a user slot, as in training.
        slots: Whether it has slots after titles.
        hybrid_prompts: False leaves these slots unfilled (`text-only-test`).
        listed: Whether it lists candidates.
    """

    def __init__(
        self,
        hybrid: HybridModel,
        store: PromptStore,
        vectors: Vectors | None,
        *,
        prompt_history: int,
        user_slot: bool,
        slots: bool = True,
        hybrid_prompts: bool = True,
        listed: bool = True,
    ) -> None:
        super().__init__(hybrid.runner, store)
        self.hybrid = hybrid
        self._vectors = vectors
        self._layout = prompt_history, user_slot, slots, listed
        self._hybrid_prompts = hybrid_prompts

    @property
    def lists_candidates(self) -> bool:
        """Whether a prompt lists its row's candidates."""
        return self._layout[-1]

    def prompts(self, split: SplitName) -> EncodedPrompts:
        """Hybrid prompts."""
        return self.store.prompts(split, *self._layout)

    @torch.no_grad()
    def prompt_inputs(self, split: SplitName, rows: Sequence[int]) -> PromptInputs:
        """Embeddings of the prompts' tokens with filled slots, and what routes the adapter."""
        batch = self.batch(split, rows)
        users = self._users(split, np.asarray(rows, dtype=np.int64))
        hybrid, slots = self._hybrid_prompts, batch["slot_items"]
        embeds = self.hybrid.embed(batch["input_ids"], slots, users, hybrid)
        routing = self.hybrid.routing(users, embeds, batch["attention_mask"])
        filling = partial(self.hybrid.filling, slots, users, hybrid)
        return PromptInputs(embeds, batch["attention_mask"], routing.get("routing_embeds"), filling)

    @torch.no_grad()
    def gate_weights(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """Expert weights of some rows of a split.

        Returns:
            float32 [b, K], averaged over modules if each has a gate of its own; None for a method
            whose gate has no weights of experts.
        """
        form = getattr(self.hybrid.llm.active_peft_config, "gate_form", None)
        if self.hybrid.routed_by is None or form != "softmax":
            return None
        weights = self.model.gate_weights(self._routing(split, rows))
        if isinstance(weights, dict):
            weights = torch.stack(list(weights.values())).mean(dim=0)
        return weights

    @torch.no_grad()
    def modulations(self, split: SplitName, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a gate without experts adds to plain LoRA in some rows of a split.

        Returns:
            For each kind of value (`factor` less 1, `scale`, `shift` or `matrix`), float32 [b,
            values] of all modules, or of one gate that all share; empty for any other method.
        """
        form = getattr(self.hybrid.llm.active_peft_config, "gate_form", None)
        if self.hybrid.routed_by is None or form not in ADDED:
            return {}
        given = self.model.gate_weights(self._routing(split, rows))
        parts: list[tuple[Tensor, ...]] = [
            one.float().chunk(len(ADDED[form]), dim=-1)
            for one in (given.values() if isinstance(given, dict) else [given])
        ]
        found = {
            kind: torch.cat(own, dim=-1)
            for kind, own in zip(ADDED[form], zip(*parts, strict=True), strict=True)
        }
        return {kind: own - 1 if kind == "factor" else own for kind, own in found.items()}

    def _routing(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """What routes some rows, [b, d]."""
        if self.hybrid.routed_by == "vector":
            return self._users(split, np.asarray(rows, dtype=np.int64))
        return self.prompt_inputs(split, rows).routing_embeds

    def _users(self, split: SplitName, index: np.ndarray) -> Tensor | None:
        if self._vectors is None:
            return None
        return self._vectors.users[split][torch.from_numpy(index)].to(self.model.device)


@contextmanager
def adapted_model(
    plan: AdapterPlan,
    llm: LanguageModel,
    store: PromptStore,
    vectors: Vectors | None,
    folder: Path,
) -> Iterator[AdaptedModel]:
    """The language model with a trained adapter, which is removed at the end of the block.

    It is on the accelerator, if there is one.

    Args:
        plan: The plan by which the adapter was trained.
        llm: The language model.
        store: Prompts and answers.
        vectors: Vectors of the recommender; None if the adapter reads none.
        folder: Folder that `train_adapter` has written.
    """
    # Read before the adapter is loaded, which may replace the embeddings.
    width = token_embeddings(llm.base).shape[1]
    with llm.adapted(folder / ADAPTER_FOLDER) as model:
        projector = items = None
        if vectors is not None:
            projector, items = Projector(vectors.width, width), vectors.items
        prefix = None if plan.prefix is None else plan.prefix(llm.base)
        hybrid = HybridModel(model, projector, items, plan.routed_by, plan.first_layer, prefix)
        hybrid.load_modules(folder)
        yield AdaptedModel(
            hybrid.eval().requires_grad_(False).to(best_device()),
            store,
            vectors,
            prompt_history=plan.settings.prompt_history,
            user_slot=plan.user_slot,
            slots=plan.settings.item_slots,
            hybrid_prompts=plan.hybrid_at_test,
            listed=plan.settings.list_candidates,
        )
