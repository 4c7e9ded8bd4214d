"""Generates answers to prompts, with greedy decoding."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from recipes.data.splits import SplitName
from recipes.llm.adapted import AdaptedModel
from recipes.scoring.arrays import Ints
from recipes.scoring.batching import batches_by_length


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
        rows: n row numbers of the split.
        lengths: int64 [n], number of tokens in each prompt (`prompt_lengths`).
        batch_size: Number of prompts in a batch.
        max_new_tokens: Maximum number of generated tokens.
        title: Label of the progress bar.
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
        # When its input is embeddings, `generate` returns only the new tokens.
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
