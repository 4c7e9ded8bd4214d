"""Likelihood ranking: the LLM ranks all candidates by log p(title | prompt).

The prompt is run once. The candidates' tokens are run in one further forward pass: side by side,
each with the prompt and itself in view, where that is cheaper and the model takes such a mask; else
on a repeated key-value cache. A model whose cache cannot be repeated (recurrent and hybrid ones)
runs every prompt with every candidate. `tests/recipes/test_rank.py` and `test_causal_families.py`
check both against whole sequences scored one by one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from recipes.data.splits import SplitName
from recipes.llm.prompted import PromptedModel, PromptInputs
from recipes.llm.training import accepted
from recipes.scoring.arrays import Floats, Ints
from recipes.scoring.batching import batches_by_length


def score_candidates(
    adapted: PromptedModel,
    split: SplitName,
    rows: Sequence[int],
    lengths: Ints,
    candidates: Ints,
    *,
    batch_size: int,
    length_normalised: bool = False,
    title: str = "rank",
) -> Floats:
    """Scores of each row's candidates, float64 [n, c]; higher is likelier.

    Args:
        adapted: Model, prompts and the answers' token ids.
        split: "train", "val" or "test".
        rows: n row numbers of the split.
        lengths: int64 [n], number of tokens in each prompt (`prompt_lengths`).
        candidates: int64 [n, c], item ids.
        batch_size: Approximate number of (prompt, candidate) sequences run at once.
        length_normalised: Divide by the answer's number of tokens. By default the score is the sum
            over tokens, end-of-sequence included, which is the log-probability of the answer. The
            mean is not a log-probability, but does not favour short titles.
        title: Label of the progress bar.
    """
    scores = np.empty(candidates.shape)
    rows_at_once = max(1, batch_size // candidates.shape[1])
    for batch in batches_by_length(lengths, rows_at_once, title):
        inputs = adapted.prompt_inputs(split, [rows[position] for position in batch])
        answers = [[adapted.answer_ids[item] for item in items] for items in candidates[batch]]
        with inputs.filling():
            found = answer_log_probs(adapted.model, inputs, answers, length_normalised)
        scores[batch] = found.double().cpu().numpy()
    return _tied(scores, candidates, adapted.answer_ids)


def _tied(scores: Floats, candidates: Ints, answer_ids: Sequence[Sequence[int]]) -> Floats:
    """Give candidates of a row that have the same title exactly the same score.

    Their scores differ by rounding, since a matrix product may round its rows differently, and
    would break the tie at random. Metrics are expectations over the order of the tied instead.
    """
    titles: dict[tuple[int, ...], int] = {}
    kinds = np.array([titles.setdefault(tuple(ids), len(titles)) for ids in answer_ids])
    same = kinds[candidates]
    # [n, c, c] -> [n, c]: the first column with the same title
    first = (same[:, :, None] == same[:, None, :]).argmax(axis=2)
    return np.take_along_axis(scores, first, axis=1)


@torch.inference_mode()
def answer_log_probs(
    model: nn.Module,
    inputs: PromptInputs,
    answers: Sequence[Sequence[Sequence[int]]],
    length_normalised: bool = False,
) -> Tensor:
    """Log p(answer tokens | prompt), summed over tokens; float32 [b, c].

    Args:
        model: A causal LM (adapted or not) that returns logits and a key-value cache.
        inputs: b left-padded prompts.
        answers: Token ids of c answers for each prompt, end-of-sequence included.
        length_normalised: Take the mean over an answer's tokens in place of the sum.
    """
    choices = len(answers[0])
    tokens, present = right_padded(answers, inputs.attention_mask)  # both [b * c, l]
    mask = inputs.attention_mask
    prompt = model(
        inputs_embeds=inputs.inputs_embeds,
        attention_mask=mask,
        use_cache=True,
        **accepted(model, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0), logits_to_keep=1),
        **routing_keyword(inputs, repeats=1),
    )
    # With left padding every prompt's last token is in the last column; it predicts answer token 0.
    first = prompt.logits[:, -1:].repeat_interleave(choices, dim=0)
    log_probs = token_log_probs(first, tokens[:, :1])
    if tokens.shape[1] > 1:
        cache = repeatable_cache(prompt)
        if cache is None:
            return _pooled(
                _whole_log_probs(model, inputs, tokens, present), present, length_normalised
            ).view(len(answers), choices)
        if _takes_masks(model, cache) and choices * (tokens.shape[1] - 1) <= mask.shape[1]:
            rest = _side_by_side_log_probs(model, inputs, tokens, cache)
            log_probs = torch.cat([log_probs, rest], dim=1)
            return _pooled(log_probs, present, length_normalised).view(len(answers), choices)
        cache.batch_repeat_interleave(choices)
        mask = mask.repeat_interleave(choices, dim=0)
        steps = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        rest = model(
            input_ids=tokens[:, :-1],
            attention_mask=torch.cat([mask, present[:, :-1]], dim=1),
            past_key_values=cache,
            **accepted(model, position_ids=mask.sum(dim=1, keepdim=True) + steps),
            **routing_keyword(inputs, repeats=choices),
        )
        log_probs = torch.cat([log_probs, token_log_probs(rest.logits, tokens[:, 1:])], dim=1)
    return _pooled(log_probs, present, length_normalised).view(len(answers), choices)


def _pooled(log_probs: Tensor, present: Tensor, length_normalised: bool) -> Tensor:
    """[rows, l] -> [rows]: the sum over the answers' tokens, or their mean."""
    scores = (log_probs * present).sum(dim=1)
    return scores / present.sum(dim=1) if length_normalised else scores


def repeatable_cache(outputs: object) -> DynamicCache | None:
    """A prompt's cache, if it may be repeated for each candidate: it holds keys and values alone.

    The states of recurrent layers, and layers of a model's own, may not be repeated.
    """
    cache, known = (
        getattr(outputs, "past_key_values", None),
        (DynamicLayer, DynamicSlidingWindowLayer),
    )
    if type(cache) is DynamicCache and all(type(layer) in known for layer in cache.layers):
        return cache
    return None


MASKED = ("llama",)
"""Families whose attention is known to read a mask of our own, see `_takes_masks`."""
MASK_READERS = ("sdpa", "eager")
"""Attention functions that add a mask to their scores."""


def _takes_masks(model: nn.Module, cache: DynamicCache) -> bool:
    """Whether the model's attention reads a mask of queries and keys as it is given."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:  # which puts positions before the mask
            return False
        model = model.get_base_model()
    config: Any = model.config
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    return plain and config.model_type in MASKED and config._attn_implementation in MASK_READERS


def _side_by_side_log_probs(
    model: nn.Module, inputs: PromptInputs, tokens: Tensor, cache: DynamicCache
) -> Tensor:
    """Log-probabilities of all tokens of the answers but the first, all answers in one row.

    Nothing is copied for each answer: every answer's tokens see the prompt and what comes before
    them in their own answer.

    Args:
        model: A causal LM that takes such masks.
        inputs: b left-padded prompts of length t.
        tokens: int64 [b * c, l], right-padded answers.
        cache: The prompts' cache, which is used up.

    Returns:
        float32 [b * c, l - 1]
    """
    mask, width = inputs.attention_mask, tokens.shape[1] - 1
    rows = mask.shape[0]
    choices = tokens.shape[0] // rows
    before = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    own = torch.block_diag(*[before] * choices).bool()  # [c * (l - 1), c * (l - 1)]
    seen = torch.cat(
        [mask.bool()[:, None].expand(rows, len(own), -1), own.expand(rows, -1, -1)], dim=2
    )
    dtype = inputs.inputs_embeds.dtype
    bias = torch.zeros(seen.shape, dtype=dtype, device=mask.device)
    steps = torch.arange(width, device=mask.device).repeat(choices)
    rest = model(
        input_ids=tokens[:, :-1].reshape(rows, -1),
        attention_mask=bias.masked_fill_(~seen, torch.finfo(dtype).min)[:, None],
        past_key_values=cache,
        position_ids=mask.sum(dim=1, keepdim=True) + steps,
        **routing_keyword(inputs, repeats=1),
    )
    logits = rest.logits.reshape(tokens.shape[0], width, -1)
    return token_log_probs(logits, tokens[:, 1:])


def _whole_log_probs(
    model: nn.Module, inputs: PromptInputs, tokens: Tensor, present: Tensor
) -> Tensor:
    """Log-probabilities of answers' tokens, run with their prompts, without a cache.

    Args:
        model: A causal LM.
        inputs: b left-padded prompts.
        tokens: int64 [b * c, l], right-padded answers.
        present: int64 [b * c, l], their mask.

    Returns:
        float32 [b * c, l]
    """
    choices = tokens.shape[0] // inputs.inputs_embeds.shape[0]
    prompts = inputs.inputs_embeds.repeat_interleave(choices, dim=0)
    embeds = model.get_input_embeddings()(tokens).to(prompts.dtype)  # type: ignore[operator]
    mask = inputs.attention_mask.repeat_interleave(choices, dim=0)
    mask = torch.cat([mask, present], dim=1)
    width = tokens.shape[1]
    outputs = model(
        inputs_embeds=torch.cat([prompts, embeds], dim=1),
        attention_mask=mask,
        use_cache=False,
        **accepted(
            model,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=width + 1,
        ),
        **routing_keyword(inputs, repeats=choices),
    )
    return token_log_probs(outputs.logits[:, -width - 1 : -1], tokens)


def right_padded(answers: Sequence[Sequence[Sequence[int]]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Pad answers on the right: [b][c][tokens] -> token ids (padded with 0) and their mask.

    Both are int64 [b * c, longest], on the device of `like`.
    """
    flat = [list(answer) for row in answers for answer in row]
    longest = max(len(answer) for answer in flat)
    if min(len(answer) for answer in flat) == 0:
        raise ValueError("an answer has no token: every title needs at least its end-of-sequence")
    tokens = [answer + [0] * (longest - len(answer)) for answer in flat]
    present = [[1] * len(answer) + [0] * (longest - len(answer)) for answer in flat]
    return like.new_tensor(tokens), like.new_tensor(present)


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens: logits [rows, l, vocabulary], tokens [rows, l] -> [rows, l].

    They are computed in float32.
    """
    values = logits.float()
    chosen = values.gather(2, tokens.unsqueeze(2)).squeeze(2)
    return chosen - values.logsumexp(dim=2)


def routing_keyword(inputs: PromptInputs, repeats: int) -> dict[str, Tensor]:
    """The routing keyword for a forward of b * repeats rows; empty for methods without routing."""
    if inputs.routing_embeds is None:
        return {}
    return {"routing_embeds": inputs.routing_embeds.repeat_interleave(repeats, dim=0)}
