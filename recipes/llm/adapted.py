"""A language model with a trained adapter, ready to answer the prompts of a split."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.artifacts import read_tensors
from recipes.data.splits import SplitName
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.hybrid_model import PROJECTOR, HybridModel
from recipes.llm.language_model import LanguageModel, best_device, token_embeddings
from recipes.llm.train_adapter import ADAPTER_FOLDER
from recipes.prompting.collator import prompt_batch
from recipes.prompting.projector import Projector
from recipes.prompting.special_tokens import required_id
from recipes.prompting.store import PromptStore
from recipes.recommenders.vectors import Vectors


@dataclass(frozen=True)
class PromptInputs:
    """A batch of prompts as the model reads them, padded on the left."""

    inputs_embeds: Tensor
    """float [b, t, width], token embeddings with filled slots."""
    attention_mask: Tensor
    """int64 [b, t]."""
    routing_embeds: Tensor | None
    """float32 [b, d]; None for a method without routing."""
    filling: Callable[[], AbstractContextManager[None]] = nullcontext
    """Opens the block in which the model runs, for slots that are filled at a layer."""


class AdaptedModel:
    """A language model with one trained adapter, and the prompts of its run.

    Args:
        hybrid: The language model with adapter and projector, in evaluation mode.
        store: Prompts and answers.
        vectors: Vectors of the recommender.
        prompt_history: How many of the newest history items a prompt shows, as in training.
        user_slot: Whether the prompt has a user slot, as in training.
        slots: Whether it has slots after titles.
    """

    def __init__(
        self,
        hybrid: HybridModel,
        store: PromptStore,
        vectors: Vectors,
        *,
        prompt_history: int,
        user_slot: bool,
        slots: bool = True,
    ) -> None:
        self.hybrid = hybrid
        self.model = hybrid.llm
        self.tokenizer = store.tokenizer
        self.store = store
        self._vectors = vectors
        self._layout = prompt_history, user_slot, slots

    @property
    def answer_ids(self) -> list[list[int]]:
        """Token ids of each item's title, followed by `answer_end`; by item id."""
        return self.store.answer_ids

    @property
    def answer_end(self) -> int:
        """The token that ends an answer."""
        return self.store.frame.end

    def prompt_lengths(self, split: SplitName, rows: Sequence[int]) -> np.ndarray:
        """Number of tokens in each row's prompt, int64 [n]."""
        prompts = self.store.prompts(split, *self._layout)
        return prompts.input_ids.lengths[np.asarray(rows, dtype=np.int64)]

    @torch.no_grad()
    def prompt_inputs(self, split: SplitName, rows: Sequence[int]) -> PromptInputs:
        """The hybrid prompts of some rows of a split, without answers."""
        index = np.asarray(rows, dtype=np.int64)
        prompts = self.store.prompts(split, *self._layout)
        batch = prompt_batch(prompts, index, required_id(self.tokenizer, "pad"))
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        users = self._users(split, index)
        embeds = self.hybrid.embed(batch["input_ids"], batch["slot_items"], users, hybrid=True)
        routing = self.hybrid.routing(users, embeds, batch["attention_mask"])
        filling = partial(self.hybrid.filling, batch["slot_items"], users)
        return PromptInputs(embeds, batch["attention_mask"], routing.get("routing_embeds"), filling)

    @torch.no_grad()
    def gate_weights(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """Expert weights of some rows of a split.

        Returns:
            float32 [b, K], averaged over modules if each has a gate of its own; None for a method
            without routing.
        """
        if self.hybrid.routed_by is None:
            return None
        if self.hybrid.routed_by == "vector":
            routing = self._users(split, np.asarray(rows, dtype=np.int64))
        else:
            routing = self.prompt_inputs(split, rows).routing_embeds
        weights = self.model.gate_weights(routing)  # type: ignore[operator]
        if isinstance(weights, dict):
            weights = torch.stack(list(weights.values())).mean(dim=0)
        return weights

    def _users(self, split: SplitName, index: np.ndarray) -> Tensor:
        return self._vectors.users[split][torch.from_numpy(index)].to(self.model.device)


@contextmanager
def adapted_model(
    plan: AdapterPlan, llm: LanguageModel, store: PromptStore, vectors: Vectors, folder: Path
) -> Iterator[AdaptedModel]:
    """The language model with a trained adapter, which is removed at the end of the block.

    It is on the accelerator, if there is one.

    Args:
        plan: The plan by which the adapter was trained.
        llm: The language model.
        store: Prompts and answers.
        vectors: Vectors of the recommender.
        folder: Folder that `train_adapter` has written.
    """
    # Read before the adapter is loaded, which may replace the embeddings.
    width = token_embeddings(llm.base).shape[1]
    with llm.adapted(folder / ADAPTER_FOLDER) as model:
        projector = Projector(vectors.width, width)
        projector.load_state_dict(read_tensors(folder / PROJECTOR))
        hybrid = HybridModel(model, projector, vectors.items, plan.routed_by, plan.first_layer)
        yield AdaptedModel(
            hybrid.eval().requires_grad_(False).to(best_device()),
            store,
            vectors,
            prompt_history=plan.settings.prompt_history,
            user_slot=plan.user_slot,
            slots=plan.settings.item_slots,
        )
