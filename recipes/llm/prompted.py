"""A language model that answers the prompts of a run, with an adapter or without one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from recipes.data.splits import SplitName
from recipes.llm.language_model import LanguageModel, best_device
from recipes.prompting.collator import prompt_batch
from recipes.prompting.encoding import EncodedPrompts
from recipes.prompting.special_tokens import required_id
from recipes.prompting.store import PromptStore


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
    """Opens the block in which the model runs, for what enters at a layer: slots, or a prefix."""


class PromptedModel(ABC):
    """A language model, and the prompts of its run.

    Args:
        model: The model, in evaluation mode.
        store: Prompts and answers.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, store: PromptStore) -> None:
        self.model: Any = model
        self.tokenizer = store.tokenizer
        self.store = store

    @property
    def lists_candidates(self) -> bool:
        """Whether a prompt lists its row's candidates."""
        return True

    @contextmanager
    def listing(self, split: SplitName, rows: np.ndarray, candidates: np.ndarray) -> Iterator[None]:
        """The block in which the prompts of some rows list other candidates.

        The arguments are the first fields of `Listing`.
        """
        before = self.store
        self.store = before.listing(split, rows, candidates)
        try:
            yield
        finally:
            self.store = before

    @property
    def answer_ids(self) -> list[list[int]]:
        """Token ids of each item's title, followed by `answer_end`; by item id."""
        return self.store.answer_ids

    @property
    def answer_end(self) -> int:
        """The token that ends an answer."""
        return self.store.frame.end

    @abstractmethod
    def prompts(self, split: SplitName) -> EncodedPrompts:
        """The prompts of all rows of a split."""

    @abstractmethod
    def prompt_inputs(self, split: SplitName, rows: Sequence[int]) -> PromptInputs:
        """The prompts of some rows of a split, without answers."""

    def prompt_lengths(self, split: SplitName, rows: Sequence[int]) -> np.ndarray:
        """Number of tokens in each row's prompt, int64 [n]."""
        return self.prompts(split).input_ids.lengths[np.asarray(rows, dtype=np.int64)]

    def gate_weights(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """Expert weights of some rows of a split, float32 [b, K]; None for a method without any."""
        return None

    def modulations(self, split: SplitName, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a gate without experts adds to plain LoRA; empty for a method without any."""
        return {}

    def batch(self, split: SplitName, rows: Sequence[int]) -> dict[str, Tensor]:
        """`prompt_batch` of some rows of a split, on the model's device."""
        index = np.asarray(rows, dtype=np.int64)
        pad = required_id(self.tokenizer, "pad")
        found = prompt_batch(self.prompts(split), index, pad)
        return {name: tensor.to(self.model.device) for name, tensor in found.items()}


class UnadaptedModel(PromptedModel):
    """A language model as it is, with prompts of plain text. It is put on the accelerator, if any.

    Args:
        llm: The language model.
        store: Prompts and answers.
        prompt_history: How many of the newest history items a prompt shows.
    """

    def __init__(self, llm: LanguageModel, store: PromptStore, *, prompt_history: int) -> None:
        super().__init__(llm.base.to(best_device()), store)  # type: ignore[arg-type]
        self._prompt_history = prompt_history

    def prompts(self, split: SplitName) -> EncodedPrompts:
        """Prompts without slots."""
        return self.store.prompts(split, self._prompt_history, user_slot=False, slots=False)

    @torch.no_grad()
    def prompt_inputs(self, split: SplitName, rows: Sequence[int]) -> PromptInputs:
        """Embeddings of the prompts' tokens."""
        batch = self.batch(split, rows)
        embeds = self.model.get_input_embeddings()(batch["input_ids"])
        return PromptInputs(embeds, batch["attention_mask"], None)
