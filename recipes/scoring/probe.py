"""Tries a language model on a few tokens, before anything is trained on it.

Whatever its family: later tokens must not change earlier ones, padding must change nothing, and
the fast ways of ranking and generating must give what whole sequences give, run one by one.
"""

import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from recipes.failures import stumble
from recipes.llm.language_model import LanguageModel
from recipes.llm.loading import embedding_rows
from recipes.llm.prompted import PromptInputs
from recipes.llm.training import accepted
from recipes.scoring.generate import only_defaults
from recipes.scoring.rank import answer_log_probs

LENGTHS = 14, 5
ANSWERS = [[3, 4, 1], [5, 1]], [[1], [6, 7, 8, 1]]
"""Two answers to each prompt; numbers of tokens in `_tokens`."""
TOLERANCE = {torch.float32: 1e-3}
"""Largest relative error; that of other dtypes is `COARSE`."""
BEAMS, STEPS = 2, 3
"""Beams and new tokens of the trial by beams."""
COARSE = 0.3


@torch.no_grad()
def check_language_model(model: PreTrainedModel, name: str) -> None:
    """Refuse a model that could not be trained or evaluated rightly.

    Args:
        model: The frozen model, without an adapter.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: What the model does wrongly, and the advice to choose another.
    """
    try:
        found = _fault(model)
    except Exception as error:  # a family may stumble over anything
        raise ValueError(_message(model, name, f"cannot be used ({stumble(error)})")) from error
    if found is not None:
        raise ValueError(_message(model, name, found))


@torch.no_grad()
def check_beams(model: PreTrainedModel, name: str) -> None:
    """Refuse a model that `generate` cannot run by beams, as where no cache can be reordered.

    Args:
        model: The frozen model, without an adapter.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: What goes wrong, and the advice to decode greedily.
    """
    remedy = "set evaluate.num_beams 1, or choose another adapt.llm"
    try:
        fault = _beam_fault(model, TOLERANCE.get(model.dtype, COARSE))
    except Exception as error:  # a family may stumble over anything
        fault = f"cannot generate by beams ({stumble(error)})"
        raise ValueError(_message(model, name, fault, remedy)) from error
    if fault is not None:
        raise ValueError(_message(model, name, fault, remedy))


@torch.no_grad()
def check_wrapped(llm: LanguageModel, target_modules: Sequence[str], name: str) -> None:
    """Refuse a model that PEFT cannot run from embeddings, though it can run by itself.

    Args:
        llm: The language model, without an adapter.
        target_modules: Names of modules to adapt.
        name: As the user wrote it, for messages.

    Raises:
        ValueError: What goes wrong, and the advice to choose another.
    """
    base = llm.base
    peft = LoraConfig(task_type=TaskType.CAUSAL_LM, r=1, target_modules=list(target_modules))
    inputs = _padded(base, [_tokens(base, length, seed) for seed, length in enumerate(LENGTHS)])
    wanted = _run(base, inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with llm.wrapped(peft) as model:
                found = _run(model.eval(), inputs)
    except Exception as error:  # PEFT has rules of its own for some families
        fault = f"cannot be used with an adapter ({stumble(error)})"
        raise ValueError(_message(base, name, fault)) from error
    mask = inputs.attention_mask.bool()
    if _error(found[mask], wanted[mask]) > TOLERANCE.get(base.dtype, COARSE):
        raise ValueError(
            _message(base, name, "gives other scores with an adapter that adds nothing")
        )


def _message(
    model: PreTrainedModel, name: str, found: str, remedy: str = "choose another adapt.llm"
) -> str:
    return f"adapt.llm={name!r}: {type(model).__name__} {found}: {remedy}"


def _fault(model: PreTrainedModel) -> str | None:
    """What a model does wrongly; None if nothing was found."""
    tolerance = TOLERANCE.get(model.dtype, COARSE)
    prompts = [_tokens(model, length, seed) for seed, length in enumerate(LENGTHS)]
    whole = [_logits(model, prompt) for prompt in prompts]
    if not all(torch.isfinite(one).all() for one in whole):
        return "has weights that are not finite: the checkpoint is damaged"
    changed = [*prompts[0][:-1], prompts[1][0]]
    if _error(_logits(model, changed)[:-1], whole[0][:-1]) > tolerance:
        return "lets earlier tokens see later ones, so it is no causal language model"
    inputs = _padded(model, prompts)
    outputs = _run(model, inputs)
    for logits, wanted in zip(outputs, whole, strict=True):
        if _error(logits[-len(wanted) :], wanted) > tolerance:
            return "gives a prompt other scores when it is padded on the left"
    answers = [[[_tokens(model, 9, 2)[i] for i in ids] for ids in row] for row in ANSWERS]
    ranked = answer_log_probs(model, inputs, answers)
    for scores, prompt, row in zip(ranked, prompts, answers, strict=True):
        for score, answer in zip(scores, row, strict=True):
            wanted = _log_prob(model, prompt, answer)
            if (score - wanted).abs() > tolerance * max(1.0, abs(float(wanted))):
                return "ranks wrongly in batches"
    return _generation_fault(model, inputs, prompts, tolerance)


def _generation_fault(
    model: PreTrainedModel, inputs: PromptInputs, prompts: Sequence[list[int]], tolerance: float
) -> str | None:
    """Whether a token that `generate` chooses is not the likeliest one of the whole sequence."""
    greedy = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    with only_defaults(model, greedy):
        tokens = model.generate(  # type: ignore[operator]
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            generation_config=greedy,
        )
    if tokens.shape != (len(prompts), 3):
        return "does not return the generated tokens alone"
    for prompt, chosen in zip(prompts, tokens.tolist(), strict=True):
        sequence = list(prompt)
        for token in chosen:
            logits = _logits(model, sequence)[-1]
            if logits.max() - logits[token] > tolerance * logits.std():
                return "generates other tokens than the likeliest ones"
            sequence.append(token)
    return None


def _beam_fault(model: PreTrainedModel, tolerance: float) -> str | None:
    """Whether beams are not those of a search through whole sequences."""
    prompts = [_tokens(model, length, seed) for seed, length in enumerate(LENGTHS)]
    inputs = _padded(model, prompts)
    settings = GenerationConfig(
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=0,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
    )
    with only_defaults(model, settings):
        tokens = model.generate(  # type: ignore[operator]
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            generation_config=settings,
        )
    for prompt, found in zip(prompts, tokens.view(len(prompts), BEAMS, -1).tolist(), strict=True):
        for beam, wanted in zip(found, _searched(model, prompt), strict=True):
            score = float(_log_prob(model, prompt, beam))
            if abs(score - wanted) > tolerance * max(1.0, abs(wanted)):
                return "generates other beams than the likeliest ones"
    return None


def _searched(model: PreTrainedModel, prompt: list[int]) -> list[float]:
    """Log-probabilities of the beams after a prompt, best first, from whole sequences."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(STEPS):
        longer = []
        for score, written in beams:
            best = _logits(model, prompt + written)[-1].log_softmax(dim=-1).topk(BEAMS)
            longer += [
                (score + value, [*written, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        beams = sorted(longer, reverse=True)[:BEAMS]
    return [score for score, _ in beams]


def _tokens(model: PreTrainedModel, length: int, seed: int) -> list[int]:
    """Different tokens, spread over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    count = embedding_rows(model)
    return torch.randperm(count, generator=generator)[:length].tolist()


def _logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Logits of one sequence without padding or cache, float32 [t, vocabulary]."""
    ids = torch.tensor([tokens], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float()


def _padded(model: PreTrainedModel, prompts: Sequence[list[int]]) -> PromptInputs:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    embeds = model.get_input_embeddings()(torch.tensor(ids, device=model.device))
    return PromptInputs(embeds, torch.tensor(mask, device=model.device), None)


def _run(model: PreTrainedModel | PeftModel, inputs: PromptInputs) -> Tensor:
    mask = inputs.attention_mask
    places = accepted(model, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0))
    outputs = model(
        inputs_embeds=inputs.inputs_embeds, attention_mask=mask, use_cache=False, **places
    )
    return outputs.logits.float()


def _log_prob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    scores = _logits(model, prompt + answer).log_softmax(dim=-1)
    steps = enumerate(answer, start=len(prompt) - 1)
    return torch.stack([scores[place, token] for place, token in steps]).sum()


def _error(found: Tensor, wanted: Tensor) -> float:
    """Relative error of logits, whose mean means nothing."""
    spread = (wanted - wanted.mean(dim=-1, keepdim=True)).norm()
    return float((found - wanted).norm() / spread.clamp(min=1e-12))
