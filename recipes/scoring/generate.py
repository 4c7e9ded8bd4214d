"""Generates answers to prompts: greedily or by beams, free or constrained to given answers.

Beams are those of transformers: at every step the `num_beams` likeliest beginnings go on. What they
are ordered by is the ranking's score, the sum of an answer's log-probabilities or their mean. So
with as many beams as there are answers, the beams are the ranking by likelihood, which a test
checks.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from recipes.data.splits import SplitName
from recipes.llm.prompted import PromptedModel
from recipes.prompting.special_tokens import find_id
from recipes.prompting.written import ends_of, written_answers
from recipes.scoring.arrays import Ints
from recipes.scoring.batching import batches_by_length
from recipes.scoring.trie import Node, is_answer, next_tokens, trie

Roots = Callable[[int], Node]
"""Position of a row among the n rows -> the trie of the answers that may be written there."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are generated."""

    max_new_tokens: int
    """Maximum number of generated tokens."""
    num_beams: int = 1
    """Number of beams; 1 is greedy."""
    length_normalised: bool = False
    """Whether beams are ordered by the mean of their log-probabilities in place of the sum."""


@dataclass(frozen=True)
class Generated:
    """The answers to n prompts."""

    texts: list[str]
    """The likeliest answer to each."""
    cut_short: list[bool]
    """Whether the limit of tokens ended it, see `Written`."""
    beams: list[list[str]]
    """All beams of each row, the likeliest first, without those that repeat a text."""


def generate_answers(
    adapted: PromptedModel,
    split: SplitName,
    rows: Sequence[int],
    lengths: Ints,
    *,
    batch_size: int,
    decoding: Decoding,
    title: str = "generate",
    allowed: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Generated:
    """The first line that the model generates after each row's prompt, in order of `rows`.

    Args:
        adapted: Model, tokenizer and prompts.
        split: "train", "val" or "test".
        rows: n row numbers of the split.
        lengths: int64 [n], number of tokens in each prompt (`prompt_lengths`).
        batch_size: Number of prompts in a batch, or with beams of beams.
        decoding: How answers are generated.
        title: Label of the progress bar.
        allowed: For each of the n rows, token ids of the answers that may be written, their end
            included; None allows everything.
    """
    tokens = generated_tokens(
        adapted,
        split,
        rows,
        lengths,
        batch_size=batch_size,
        decoding=decoding,
        title=title,
        roots=None if allowed is None else lambda position: trie(allowed[position]),
    )
    texts, cut_short, beams = [], [], []
    for own in tokens:
        written = written_answers(adapted.tokenizer, own, adapted.answer_end)
        texts.append(written[0].text)
        cut_short.append(written[0].cut_short)
        beams.append(list(dict.fromkeys(answer.text for answer in written)))
    return Generated(texts, cut_short, beams)


@torch.inference_mode()
def generated_tokens(
    adapted: PromptedModel,
    split: SplitName,
    rows: Sequence[int],
    lengths: Ints,
    *,
    batch_size: int,
    decoding: Decoding,
    title: str = "generate",
    roots: Roots | None = None,
) -> list[list[list[int]]]:
    """The token ids of each row's beams, the likeliest first, without what follows their end.

    The arguments are those of `generate_answers`. Under a constraint a row has only beams that are
    whole answers, fewer than `num_beams` where there are fewer answers; it has at least one entry.
    A row in which the model gives a NaN has one empty entry, since what it would write is chance.
    """
    tokenizer, end, width = adapted.tokenizer, adapted.answer_end, decoding.num_beams
    pad = find_id(tokenizer, "pad")
    pad = end if pad is None else pad
    ends = ends_of(tokenizer, end)
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        **(_beams(decoding) if width > 1 else {}),
    )
    found: list[list[list[int]]] = [[[]]] * len(rows)
    for batch in batches_by_length(lengths, max(1, batch_size // width), title):
        inputs = adapted.prompt_inputs(split, [rows[position] for position in batch])
        routing = {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}
        own = None if roots is None else [roots(int(position)) for position in batch]
        broken = _Broken()
        # When its input is embeddings, `generate` returns only the new tokens.
        with inputs.filling(), only_defaults(adapted.model, settings):
            tokens = adapted.model.generate(
                inputs_embeds=inputs.inputs_embeds,
                attention_mask=inputs.attention_mask,
                generation_config=settings,
                prefix_allowed_tokens_fn=_constraint(own, pad),
                logits_processor=LogitsProcessorList([broken]),
                **routing,
            )
        written = [_until(row, ends) for row in tokens.tolist()]
        lost = broken.rows(len(batch))
        for place, position in enumerate(batch):
            beams = written[place * width : (place + 1) * width]
            if own is not None and width > 1:
                beams = _whole(beams, own[place])
            found[position] = [[]] if lost[place] else beams
    return found


def _beams(decoding: Decoding) -> dict[str, object]:
    """Settings of transformers' beam search that make a beam's score that of the ranking."""
    return {
        "num_beams": decoding.num_beams,
        "num_return_sequences": decoding.num_beams,
        "length_penalty": 1.0 if decoding.length_normalised else 0.0,
        "early_stopping": "never",  # go on while a beginning may still lead to a better answer
    }


class _Broken(LogitsProcessor):
    """Changes nothing, and remembers in which rows of a batch a score was NaN."""

    def __init__(self) -> None:
        self.found: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` as they are: float [rows or beams, vocabulary]."""
        here = scores.isnan().any(dim=1)
        self.found = here if self.found is None else self.found | here
        return scores

    def rows(self, count: int) -> list[bool]:
        """Whether each of the batch's rows had a NaN, in any of its beams."""
        if self.found is None:
            return [False] * count
        return self.found.view(count, -1).any(dim=1).tolist()


def _until(tokens: list[int], ends: Collection[int]) -> list[int]:
    """The tokens up to the first end, which is kept."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def _whole(beams: list[list[int]], root: Node) -> list[list[int]]:
    """The beams that are whole answers, each once.

    Where a row has fewer answers than beams, transformers fills the others up with repetitions and
    with what no answer begins.
    """
    answers = [beam for beam in beams if is_answer(root, beam)]
    once = list(dict.fromkeys(map(tuple, answers)))
    return [list(answer) for answer in once] or [[]]


def _constraint(
    roots: Sequence[Node] | None, pad: int
) -> Callable[[int, Tensor], list[int]] | None:
    """What `generate` asks for the tokens that a row may go on with; None allows all."""
    if roots is None:
        return None
    # A row that has ended is padded until the last row of the batch has. So is one that scores of
    # NaN have led away from all answers.
    return lambda row, written: next_tokens(roots[row], written.tolist()) or [pad]


@contextmanager
def only_defaults(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Puts a checkpoint's own generation settings aside.

    `generate` fills whatever a given config leaves open from the model's `generation_config`:
    penalties, beams, forced and suppressed tokens, stop strings. None of them may decide what an
    evaluation measures.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    holders = [one for one in (model, inner) if "generation_config" in vars(one)]
    before = [one.generation_config for one in holders]
    try:
        for one in holders:
            one.generation_config = copy.deepcopy(config)  # type: ignore[assignment]
        yield
    finally:
        for one, own in zip(holders, before, strict=True):
            one.generation_config = own
