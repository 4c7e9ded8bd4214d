"""A trained adapter, ready to answer prompts of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recipes.artifacts import read_record, read_tensors
from recipes.data.splits import SplitName
from recipes.data.tables import PreparedData
from recipes.experiment import AdaptConfig, Method
from recipes.llm.adapt import adapter_folder, check_inputs, llm_path
from recipes.llm.hybrid_model import PROJECTOR, HybridModel
from recipes.llm.language_model import (
    best_device,
    load_language_model,
    peft_wrapping,
    token_embeddings,
)
from recipes.llm.methods import has_user_slot, uses_routing
from recipes.llm.train_adapter import ADAPTER_FOLDER, NORMALISER, TOKENS
from recipes.prompting.collator import prompt_batch
from recipes.prompting.encoding import EncodedPrompts, encode_answers, encode_prompts
from recipes.prompting.normaliser import Normaliser
from recipes.prompting.projector import Projector
from recipes.prompting.special_tokens import required_id
from recipes.recommender.representations import Representations


@dataclass(frozen=True)
class PromptInputs:
    """A batch of prompts as the model reads them, padded on the left."""

    inputs_embeds: Tensor
    """float [b, t, width], slots filled."""
    attention_mask: Tensor
    """int64 [b, t]."""
    routing_embeds: Tensor | None
    """float32 [b, d], or None for a method without routing."""


class AdaptedModel:
    """A language model with one trained adapter, and the prompts of its run.

    Args:
        hybrid: Adapter and projector, in evaluation mode.
        tokenizer: Of the language model.
        data: The run's.
        users: Standardised user representations by split, float32 [rows, d], row-aligned.
        prompt_history: As in training.
        user_slot: As in training.
        tokens: Cache of `tokenised`.
    """

    def __init__(
        self,
        hybrid: HybridModel,
        tokenizer: PreTrainedTokenizerBase,
        data: PreparedData,
        users: dict[str, Tensor],
        *,
        prompt_history: int,
        user_slot: bool,
        tokens: Path | None = None,
    ) -> None:
        self.hybrid = hybrid
        self.model = hybrid.llm
        self.tokenizer = tokenizer
        self._data = data
        self._users = users
        self._prompt_history = prompt_history
        self._user_slot = user_slot
        self._tokens = tokens
        self._encoded: dict[SplitName, EncodedPrompts] = {}

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """Token ids of each item's title and eos, by item id."""
        answers = encode_answers(self.tokenizer, self._data.titles, cache=self._tokens)
        return [answers.row(item) for item in range(len(answers))]

    @torch.no_grad()
    def prompt_inputs(self, split: SplitName, rows: Sequence[int]) -> PromptInputs:
        """Hybrid prompts of rows of a split, without answers."""
        index = np.asarray(rows, dtype=np.int64)
        batch = prompt_batch(self._prompts(split), index, required_id(self.tokenizer, "pad"))
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        embeds = self.hybrid.embed(
            batch["input_ids"], batch["slot_items"], self._user_batch(split, rows), hybrid=True
        )
        return PromptInputs(embeds, batch["attention_mask"], self.routing_embeds(split, rows))

    def routing_embeds(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """What routes these rows, float32 [b, d]; None for a method without routing."""
        return self._user_batch(split, rows) if self.hybrid.routed else None

    @torch.no_grad()
    def gate_weights(self, split: SplitName, rows: Sequence[int]) -> Tensor | None:
        """Expert weights of these rows, float32 [b, K]; None for a method without routing."""
        routing = self.routing_embeds(split, rows)
        return None if routing is None else self.model.gate_weights(routing)  # type: ignore[operator]

    def _user_batch(self, split: SplitName, rows: Sequence[int]) -> Tensor:
        index = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        return self._users[split][index].to(self.model.device)

    def _prompts(self, name: SplitName) -> EncodedPrompts:
        if name not in self._encoded:
            split = self._data.split(name)
            self._encoded[name] = encode_prompts(
                self.tokenizer,
                self._data.titles,
                split.histories[:, -self._prompt_history :],
                split.candidates,
                user_slot=self._user_slot,
                cache=self._tokens,
            )
        return self._encoded[name]


def load_adapted(run: Path, method: Method, seed: int) -> AdaptedModel:
    """Load a trained adapter of a run, onto the accelerator where there is one.

    Raises:
        FileNotFoundError: It has not been trained.
        ValueError: Data or recommender have been made anew since.
    """
    folder = adapter_folder(run, method, seed)
    record = read_record(folder, "adapt")
    check_inputs(record, run, "adapt")
    known = {field.name for field in fields(AdaptConfig)} & record.config.keys()
    config = AdaptConfig(**{name: record.config[name] for name in known})
    llm, tokenizer = load_language_model(llm_path(config, run), config.precision)
    with peft_wrapping():
        model = PeftModel.from_pretrained(llm, str(folder / ADAPTER_FOLDER))

    representations = Representations.load(run / "recommender")
    normaliser = Normaliser.load(folder / NORMALISER)
    items = normaliser.items(representations.items)
    projector = Projector(items.shape[1], token_embeddings(llm).shape[1])
    projector.load_state_dict(read_tensors(folder / PROJECTOR))
    hybrid = HybridModel(model, projector, items, routed=uses_routing(method))
    return AdaptedModel(
        hybrid.eval().requires_grad_(False).to(best_device()),
        tokenizer,
        PreparedData.load(run / "prepare"),
        {name: normaliser.users(users) for name, users in representations.users.items()},
        prompt_history=config.prompt_history,
        user_slot=has_user_slot(method),
        tokens=run / TOKENS,
    )
