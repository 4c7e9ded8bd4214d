"""Greedy answers to the prompts, and the two rules that read an item out of an answer."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from recipes.data.splits import SplitName
from recipes.evaluation.batching import batches_by_length
from recipes.evaluation.metrics import Ints
from recipes.llm.adapted import AdaptedModel


@torch.inference_mode()
def generate_answers(
    adapted: AdaptedModel,
    split: SplitName,
    rows: Sequence[int],
    lengths: Ints,
    *,
    batch_size: int,
    max_new_tokens: int,
    title: str = "generate",
) -> list[str]:
    """The first line that the model generates greedily after each row's prompt, in order of `rows`.

    Args:
        adapted: Model, tokenizer and prompts.
        split: "train", "val" or "test".
        rows: Rows of the split.
        lengths: int64 [n], tokens of each prompt (`prompt_lengths`).
        batch_size: Prompts of a batch.
        max_new_tokens: Tokens generated at most.
        title: Name of the progress bar.
    """
    tokenizer = adapted.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # A config of our own: a checkpoint's generation_config may ask for sampling.
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    answers = [""] * len(rows)
    for batch in batches_by_length(lengths, batch_size, title):
        inputs = adapted.prompt_inputs(split, [rows[position] for position in batch])
        routing = {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}
        # Given embeddings only, generate returns the new tokens only.
        tokens = adapted.model.generate(
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            generation_config=greedy,
            **routing,
        )
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for position, text in zip(batch, texts, strict=True):
            answers[position] = first_line(text)
    return answers


def first_line(text: str) -> str:
    """The first line of the stripped text, stripped; "" if there is none."""
    return text.strip().partition("\n")[0].strip()


def parse_answer(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names, or None if it is invalid.

    Our rule: apart from case and runs of white space the answer IS one candidate's title. An answer
    that two candidates share as their title is ambiguous, so invalid.
    """
    answer = _normalised(text)
    named = [index for index, title in enumerate(candidate_titles) if _normalised(title) == answer]
    return named[0] if len(named) == 1 else None


def parse_answer_by_substring(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that an answer names by the reference's rule, or None.

    The reference (LLaRA, iLoRA) calls an answer valid when exactly one candidate title is a
    substring of it. That voids a perfect answer whose title contains another candidate's, and
    accepts a title inside a longer text. Reported under its own label, for comparison only.
    """
    answer = text.strip().lower()
    named = [
        index for index, title in enumerate(candidate_titles) if title.strip().lower() in answer
    ]
    return named[0] if len(named) == 1 else None


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
