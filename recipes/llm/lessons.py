"""What a stand-in is taught, all of it drawn beforehand from its seed.

The format is taught on prompts whose history and candidates are titles drawn uniformly from the
catalogue, and whose answers are random candidates. So it holds no preference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recipes.data.padding import PADDING
from recipes.data.tables import Split
from recipes.experiment import StandInConfig
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.llm.title_tokenizer import new_title_tokenizer, question
from recipes.prompting.collator import IGNORED, TrainingCollator
from recipes.prompting.encoding import NO_SLOT, EncodedPrompts, encode_answers, encode_prompts
from recipes.prompting.prompts import HISTORY
from recipes.prompting.ragged import Ragged
from recipes.prompting.special_tokens import required_id
from recipes.prompting.tokens import tokenised

QUESTIONS = 8
"""Candidates that a prompt of the lessons asks for by their place."""


@dataclass(frozen=True)
class Lessons:
    """Batches of some kinds, which take turns: step t is of kind `t % len(kinds)`."""

    tokenizer: PreTrainedTokenizerFast
    kinds: tuple[TrainingCollator, ...]
    batch_size: int
    untaught: tuple[int, ...] = ()
    """Tokens of answers that are given and not to be predicted."""

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt and the longest answer together."""
        return max(
            int(kind.prompts.input_ids.lengths.max() + kind.answers.lengths.max())
            for kind in self.kinds
        )

    @property
    def in_order(self) -> bool:
        """Whether samples must be taken in order, so that a batch is of one kind."""
        return len(self.kinds) > 1

    def __call__(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Collate the samples of one step, given by their numbers; see `TrainingCollator`."""
        steps, places = np.divmod(np.asarray(samples, dtype=np.int64), self.batch_size)
        turns, kinds = np.divmod(steps, len(self.kinds))
        batch = self.kinds[int(kinds[0])]((turns * self.batch_size + places).tolist())
        for token in self.untaught:
            batch["labels"][batch["labels"] == token] = IGNORED
        return batch


def subword_lessons(
    config: StandInConfig, titles: Sequence[str], *, prompt_history: int, num_candidates: int
) -> Lessons:
    """Lessons in copying a title of several tokens.

    To train faster, a prompt is answered by all of its candidates in random order, each followed by
    eos. (With one answer in each prompt, so small a model memorises the catalogue long before it
    learns to copy.)

    Args:
        config: Number and size of batches, and the seed.
        titles: Title of each item, by item id.
        prompt_history: Maximum number of history items in a prompt.
        num_candidates: Number of candidates in a prompt.
    """
    tokenizer = new_tokenizer(titles, config.vocab_size)
    random = np.random.default_rng(config.seed)
    count = config.max_steps * config.batch_size
    histories, candidates = _drawn(random, count, len(titles), prompt_history, num_candidates)
    orders = random.permuted(candidates, axis=1)
    answers = encode_answers(tokenizer, titles).take(orders.ravel())
    lessons = _collator(
        tokenizer,
        encode_prompts(tokenizer, titles, histories, candidates),
        answers.regrouped(np.full(count, num_candidates)),
    )
    return Lessons(tokenizer, (lessons,), config.batch_size)


def title_lessons(
    config: StandInConfig,
    titles: Sequence[str],
    train: Split,
    *,
    prompt_history: int,
    num_candidates: int,
) -> Lessons:
    """Lessons in what follows what, and in the format, with one token a title.

    Every other batch holds train windows, whose titles are to be predicted one after the other. The
    rest hold prompts of random titles: hybrid ones (whose slots hold their placeholder), plain text
    and ones with a user slot in turn. A prompt is answered by a random candidate, and goes on with
    questions for the candidate at a given place.

    Args:
        config: Number and size of batches, and the seed.
        titles: Title of each item, by item id.
        train: The train windows.
        prompt_history: Maximum number of history items in a prompt.
        num_candidates: Number of candidates in a prompt.

    Raises:
        ValueError: No train window has a history.
    """
    tokenizer = new_title_tokenizer(titles, num_candidates)
    token_of = title_tokens(tokenizer, titles)
    questions = np.array(
        tokenizer.convert_tokens_to_ids(list(map(question, range(num_candidates))))
    )
    random = np.random.default_rng(config.seed)
    layouts = [(True, False), (False, False), (True, True)]  # slots, user slot
    kinds = 2 * len(layouts)
    count = -(-config.max_steps // kinds) * config.batch_size
    found = []
    for slots, user_slot in layouts:
        found.append(_next_items(random, count, train, token_of, tokenizer))
        histories, candidates = _drawn(random, count, len(titles), prompt_history, num_candidates)
        prompts = encode_prompts(
            tokenizer, titles, histories, candidates, user_slot=user_slot, slots=slots
        )
        answers = _answers(random, candidates, token_of, questions, tokenizer)
        found.append(_collator(tokenizer, prompts, answers))
    return Lessons(tokenizer, tuple(found), config.batch_size, tuple(questions.tolist()))


def title_tokens(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> NDArray[np.int64]:
    """The token of each item's title, by item id: int64 [num_items]."""
    answers = encode_answers(tokenizer, titles)  # a token and eos each
    return answers.values.reshape(len(titles), 2)[:, 0].astype(np.int64)


def _next_items(
    random: np.random.Generator,
    count: int,
    train: Split,
    token_of: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerFast,
) -> TrainingCollator:
    """Random train windows: the history's opening as a prompt, all titles and the target after."""
    told = np.flatnonzero(train.history_lengths > 0)
    if len(told) == 0:
        raise ValueError(
            "no train window has a history, so a stand-in with a token for each title has nothing "
            "to learn from: set adapt.stand_in.titles subword, or prepare data with longer "
            "sequences"
        )
    rows = random.choice(told, size=count)
    items = np.concatenate([train.histories[rows], train.targets[rows, None]], axis=1)
    shown = items != PADDING
    answers = Ragged(
        token_of[items[shown]].astype(np.int32), np.concatenate([[0], shown.sum(axis=1).cumsum()])
    )
    (opening,) = tokenised(tokenizer, [f"\n{HISTORY}"])
    ids = Ragged.from_rows([[required_id(tokenizer, "bos"), *opening]] * count)
    no_slots = Ragged(np.full_like(ids.values, NO_SLOT), ids.offsets)
    return _collator(tokenizer, EncodedPrompts(ids, no_slots), answers)


def _answers(
    random: np.random.Generator,
    candidates: NDArray[np.int64],
    token_of: NDArray[np.int64],
    questions: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerFast,
) -> Ragged:
    """A random candidate and eos; then some questions, each with its candidate and eos."""
    count, width = candidates.shape
    asked = random.permuted(np.tile(np.arange(width), (count, 1)), axis=1)[:, :QUESTIONS]
    answered = token_of[np.take_along_axis(candidates, asked, axis=1)]
    eos = np.full_like(answered, required_id(tokenizer, "eos"))
    asking = np.stack([questions[asked], answered, eos], axis=2).reshape(count, -1)
    free = token_of[candidates[np.arange(count), random.integers(width, size=count)]]
    rows = np.concatenate([free[:, None], eos[:, :1], asking], axis=1)
    return Ragged(rows.ravel().astype(np.int32), np.arange(count + 1) * rows.shape[1])


def _collator(
    tokenizer: PreTrainedTokenizerFast, prompts: EncodedPrompts, answers: Ragged
) -> TrainingCollator:
    """One sample for each prompt, with the answer of the same number."""
    rows = np.arange(len(answers))
    return TrainingCollator(prompts, answers, rows, rows, required_id(tokenizer, "pad"))


def _drawn(
    random: np.random.Generator,
    count: int,
    num_items: int,
    prompt_history: int,
    num_candidates: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random histories of every length, [count, prompt_history], and distinct candidates."""
    candidates = _distinct(random, count, num_items, num_candidates)
    histories = random.integers(num_items, size=(count, prompt_history))
    lengths = random.integers(1, prompt_history + 1, size=count)
    histories[np.arange(prompt_history) < prompt_history - lengths[:, None]] = PADDING
    return histories, candidates


def _distinct(
    random: np.random.Generator, count: int, num_items: int, num_candidates: int
) -> NDArray[np.int64]:
    """`count` rows of `num_candidates` different item ids each."""
    if num_items < 4 * num_candidates:
        keys = random.random((count, num_items), dtype=np.float32)
        return keys.argsort(axis=1)[:, :num_candidates]
    drawn = random.integers(num_items, size=(count, num_candidates))
    while len(repeated := _rows_with_repeats(drawn)):
        drawn[repeated] = random.integers(num_items, size=(len(repeated), num_candidates))
    return drawn


def _rows_with_repeats(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered = np.sort(rows, axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(axis=1).nonzero()[0]
