"""The prompts and answers of a run as token ids, each encoded only once."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from recipes.data.redraw import redrawn
from recipes.data.splits import SplitName
from recipes.data.tables import PreparedData
from recipes.prompting.encoding import EncodedPrompts, encode_answers, encode_prompts
from recipes.prompting.frame import ChatTemplate, Frame, frame_of
from recipes.prompting.ragged import Ragged


@dataclass(frozen=True)
class Listing:
    """Some rows of a split whose prompts list other candidates."""

    split: SplitName
    rows: NDArray[np.integer]
    """Integers [m], row numbers of the split."""
    candidates: NDArray[np.integer]
    """Integers [m, c], item ids."""
    store: "PromptStore"
    """The prompts of all other rows."""


class PromptStore:
    """Prompts and answers of one dataset, encoded with one tokenizer.

    Args:
        tokenizer: The language model's tokenizer.
        data: The prepared data of the run.
        cache: Folder for token ids, see `tokenised`; None keeps them in memory only.
        chat_template: See `frame_of`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: PreparedData,
        cache: Path | None = None,
        chat_template: ChatTemplate = "none",
    ) -> None:
        self.tokenizer = tokenizer
        self.data = data
        self._cache = cache
        self._chat_template: ChatTemplate = chat_template
        self._prompts: dict[tuple[SplitName, int, bool, bool, bool], EncodedPrompts] = {}
        self._redrawn: tuple[tuple[int, int, bool, bool], EncodedPrompts] | None = None
        self._listing: Listing | None = None

    @cached_property
    def frame(self) -> Frame:
        """What stands around prompts and answers."""
        return frame_of(self.tokenizer, self._chat_template, self._cache)

    @cached_property
    def open_frame(self) -> Frame:
        """The frame of prompts that list no candidates."""
        return frame_of(self.tokenizer, self._chat_template, self._cache, listed=False)

    def listing(
        self, name: SplitName, rows: NDArray[np.integer], candidates: NDArray[np.integer]
    ) -> "PromptStore":
        """The same store, but that the prompts of some rows list other candidates.

        No others are encoded again. The arguments are the first fields of `Listing`.
        """
        found = copy.copy(self)  # with the answers, if they are encoded already
        found._cache, found._prompts = None, {}
        found._listing = Listing(name, rows, candidates, self)
        return found

    def prompts(
        self,
        name: SplitName,
        prompt_history: int,
        user_slot: bool,
        slots: bool = True,
        listed: bool = True,
    ) -> EncodedPrompts:
        """The prompts of all rows of a split.

        Args:
            name: Name of the split.
            prompt_history: How many of the newest history items a prompt shows.
            user_slot: See `hybrid_prompt`.
            slots: See `encode_prompts`.
            listed: Whether the prompts list the row's candidates.
        """
        key = (name, prompt_history, user_slot, slots, listed)
        if key not in self._prompts:
            if self._listing is not None:
                found = self._relisted(self._listing, *key)
            else:
                candidates = self.data.split(name).candidates
                candidates = candidates if listed else candidates[:, :0]
                found = self._encoded(name, candidates, prompt_history, user_slot, slots)
            self._prompts[key] = found
        return self._prompts[key]

    def _relisted(
        self,
        listing: Listing,
        name: SplitName,
        prompt_history: int,
        user_slot: bool,
        slots: bool,
        listed: bool,
    ) -> EncodedPrompts:
        """The other store's prompts, with those of the listing's rows in their place."""
        found = listing.store.prompts(name, prompt_history, user_slot, slots, listed)
        if name != listing.split or not listed:
            return found
        layout = prompt_history, user_slot, slots
        own = self._encoded(name, listing.candidates, *layout, rows=listing.rows)
        return EncodedPrompts(
            found.input_ids.replaced(listing.rows, own.input_ids),
            found.slot_items.replaced(listing.rows, own.slot_items),
        )

    def redrawn(
        self,
        epoch: int,
        prompt_history: int,
        user_slot: bool,
        slots: bool = True,
        listed: bool = True,
    ) -> EncodedPrompts:
        """The prompts of the train rows in an epoch, from 1, with candidates drawn for it.

        The last epoch's are kept. Prompts that list no candidates are the same in every epoch.
        """
        if not listed:
            return self.prompts("train", prompt_history, user_slot, slots, listed)
        key = (epoch, prompt_history, user_slot, slots)
        if self._redrawn is None or self._redrawn[0] != key:
            assert self.data.folder is not None
            candidates = redrawn(self.data, self.data.folder, epoch)
            found = self._encoded("train", candidates, prompt_history, user_slot, slots)
            self._redrawn = key, found
        return self._redrawn[1]

    def _encoded(
        self,
        name: SplitName,
        candidates: NDArray[np.integer],
        prompt_history: int,
        user_slot: bool,
        slots: bool,
        rows: NDArray[np.integer] | slice = slice(None),
    ) -> EncodedPrompts:
        return encode_prompts(
            self.tokenizer,
            self.data.titles,
            self.data.split(name).histories[rows, -prompt_history:],
            candidates,
            user_slot=user_slot,
            slots=slots,
            frame=self.frame if candidates.shape[1] else self.open_frame,
            cache=self._cache,
        )

    @cached_property
    def answers(self) -> Ragged:
        """Token ids of each item's title, followed by its end; by item id."""
        return encode_answers(self.tokenizer, self.data.titles, frame=self.frame, cache=self._cache)

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """`answers` as lists."""
        return [self.answers.row(item) for item in range(len(self.answers))]
