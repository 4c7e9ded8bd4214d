"""The prompts and answers of a run as token ids, each encoded only once."""

from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from recipes.data.splits import SplitName
from recipes.data.tables import PreparedData
from recipes.prompting.encoding import EncodedPrompts, encode_answers, encode_prompts
from recipes.prompting.ragged import Ragged


class PromptStore:
    """Prompts and answers of one dataset, encoded with one tokenizer.

    Args:
        tokenizer: The language model's tokenizer.
        data: The prepared data of the run.
        cache: Folder for token ids, see `tokenised`; None keeps them in memory only.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, data: PreparedData, cache: Path | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.data = data
        self._cache = cache
        self._prompts: dict[tuple[SplitName, int, bool], EncodedPrompts] = {}

    def prompts(self, name: SplitName, prompt_history: int, user_slot: bool) -> EncodedPrompts:
        """The prompts of all rows of a split.

        Args:
            name: Name of the split.
            prompt_history: How many of the newest history items a prompt shows.
            user_slot: See `hybrid_prompt`.
        """
        key = (name, prompt_history, user_slot)
        if key not in self._prompts:
            split = self.data.split(name)
            self._prompts[key] = encode_prompts(
                self.tokenizer,
                self.data.titles,
                split.histories[:, -prompt_history:],
                split.candidates,
                user_slot=user_slot,
                cache=self._cache,
            )
        return self._prompts[key]

    @cached_property
    def answers(self) -> Ragged:
        """Token ids of each item's title, followed by eos; by item id."""
        return encode_answers(self.tokenizer, self.data.titles, cache=self._cache)

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """`answers` as lists."""
        return [self.answers.row(item) for item in range(len(self.answers))]
