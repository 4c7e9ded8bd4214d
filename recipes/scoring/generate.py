"""Generates answers to prompts, with greedy decoding, free or constrained to given answers."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from recipes.data.splits import SplitName
from recipes.llm.prompted import PromptedModel
from recipes.prompting.written import Written, written_answers
from recipes.scoring.arrays import Ints
from recipes.scoring.batching import batches_by_length
from recipes.scoring.trie import next_tokens, trie


@dataclass(frozen=True)
class Generated:
    """The answers to n prompts."""

    texts: list[str]
    cut_short: list[bool]
    """Whether the limit of tokens ended the answer, see `Written`."""


@torch.inference_mode()
def generate_answers(
    adapted: PromptedModel,
    split: SplitName,
    rows: Sequence[int],
    lengths: Ints,
    *,
    batch_size: int,
    max_new_tokens: int,
    title: str = "generate",
    allowed: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Generated:
    """The first line that the model generates greedily after each row's prompt, in order of `rows`.

    Args:
        adapted: Model, tokenizer and prompts.
        split: "train", "val" or "test".
        rows: n row numbers of the split.
        lengths: int64 [n], number of tokens in each prompt (`prompt_lengths`).
        batch_size: Number of prompts in a batch.
        max_new_tokens: Maximum number of generated tokens.
        title: Label of the progress bar.
        allowed: For each of the n rows, token ids of the answers that may be written, their end
            included; None allows everything.
    """
    tokenizer, end = adapted.tokenizer, adapted.answer_end
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=pad,
    )
    answers = [Written("")] * len(rows)
    for batch in batches_by_length(lengths, batch_size, title):
        inputs = adapted.prompt_inputs(split, [rows[position] for position in batch])
        routing = {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}
        # When its input is embeddings, `generate` returns only the new tokens.
        with inputs.filling(), only_defaults(adapted.model, greedy):
            tokens = adapted.model.generate(
                inputs_embeds=inputs.inputs_embeds,
                attention_mask=inputs.attention_mask,
                generation_config=greedy,
                prefix_allowed_tokens_fn=_constraint(allowed, batch, pad),
                **routing,
            )
        written = written_answers(tokenizer, tokens.tolist(), end)
        for position, answer in zip(batch, written, strict=True):
            answers[position] = answer
    return Generated([one.text for one in answers], [one.cut_short for one in answers])


def _constraint(
    allowed: Sequence[Sequence[Sequence[int]]] | None, batch: Ints, pad: int
) -> Callable[[int, Tensor], list[int]] | None:
    """What `generate` asks for the tokens that a row may go on with; None allows all."""
    if allowed is None:
        return None
    roots = [trie(allowed[position]) for position in batch]
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
