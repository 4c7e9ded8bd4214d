"""Benchmark of ranking, generation and data preparation.

It compares ranking behind a shared prompt with ranking of full prompts, and generation in batches
of similar length with generation in unsorted ones. It also measures the share of a training step
that is spent on its data.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.bench.measure import BenchConfig, Figure, compare, interleaved, peaks, publish
from recipes.bench.models import ROUTING_DIM, Shape, ilora
from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.experiment import AdapterSettings
from recipes.llm.adapted import AdaptedModel
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.adapter_trainer import parameter_groups
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.language_model import token_embeddings
from recipes.llm.prompted import PromptInputs
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import encode_answers, encode_prompts
from recipes.prompting.projector import new_projector
from recipes.prompting.special_tokens import required_id
from recipes.prompting.store import PromptStore
from recipes.recommenders.normaliser import Normaliser
from recipes.recommenders.vectors import Vectors
from recipes.scoring.arrays import Ints
from recipes.scoring.generate import Decoding, generate_answers
from recipes.scoring.rank import answer_log_probs, right_padded, routing_keyword, token_log_probs

Answers = Sequence[Sequence[Sequence[int]]]


@dataclass(kw_only=True)
class EvaluationConfig(BenchConfig):
    """Sizes of the models and of the data."""

    shape: Shape = field(default_factory=Shape)
    """Shape of the model that ranks and generates."""
    stand_in: Shape = field(
        default_factory=lambda: Shape(hidden_size=128, intermediate_size=256, layers=2, heads=4)
    )
    """Shape of the model that is trained; in a small one, data take a larger share of a step."""
    titles: int = 500
    """Number of titles in the catalogue, of one to four words each."""
    candidates: int = 20
    """Number of candidates in a prompt."""
    history: int = 10
    """Maximum number of items in a history, 3 or more."""
    ranked: int = 2
    """Prompts ranked at once."""
    generated: int = 32
    """Prompts for which answers are generated in one timing."""
    batch: int = 8
    """Prompts in a batch of generation."""
    max_new_tokens: int = 8
    """Maximum number of generated tokens."""
    trained: int = 16
    """Prompts in a training step."""


def run(config: EvaluationConfig) -> list[Figure]:
    """Time ranking, generation and data preparation."""
    torch.set_num_threads(config.threads)
    data = _data(config)
    adapted = _adapted(config, config.shape, data)
    figures, notes = [], {}
    for part in (_ranking, _generation, _training):
        figure, found = part(config, adapted, data)
        figures.append(figure)
        notes |= found
    publish("evaluation", config, figures, notes)
    return figures


Part = tuple[Figure, dict[str, object]]


def _ranking(config: EvaluationConfig, adapted: AdaptedModel, data: PreparedData) -> Part:
    rows = range(config.ranked)
    candidates = data.split("test").candidates[: config.ranked]
    answers = [[adapted.answer_ids[item] for item in items] for items in candidates]

    def prompts() -> PromptInputs:
        return adapted.prompt_inputs("test", rows)

    sides = {
        "shared prompt": lambda: answer_log_probs(adapted.model, prompts(), answers),
        "full prompts": lambda: full_log_probs(adapted.model, prompts(), answers),
    }
    own, theirs = (score() for score in sides.values())
    worst = (own - theirs).abs().max().item()
    if worst > 1e-4:
        raise ValueError(f"the sides do not compute the same: scores differ by {worst}")
    times = interleaved(sides, config.rounds, config.device)
    what = f"ranking {config.candidates} candidates, times faster"
    figure = compare(what, times, "shared prompt", "full prompts", 5.0, at_least=True)
    memory = peaks(sides, config.device)
    return figure, {
        "largest difference of scores": worst,
        "peak memory of ranking in bytes": memory,
    }


@torch.inference_mode()
def full_log_probs(model: PeftModel, inputs: PromptInputs, answers: Answers) -> Tensor:
    """The result of `answer_log_probs`, from one forward over each prompt with each answer."""
    choices = len(answers[0])
    tokens, present = right_padded(answers, inputs.attention_mask)
    prompts = inputs.inputs_embeds.repeat_interleave(choices, dim=0)
    endings = model.get_input_embeddings()(tokens)
    mask = inputs.attention_mask.repeat_interleave(choices, dim=0)
    mask = torch.cat([mask, present], dim=1)
    logits = model(
        inputs_embeds=torch.cat([prompts, endings], dim=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=tokens.shape[1] + 1,
        use_cache=False,
        **routing_keyword(inputs, repeats=choices),
    ).logits
    scores = (token_log_probs(logits[:, :-1], tokens) * present).sum(dim=1)
    return scores.view(len(answers), choices)


def _generation(config: EvaluationConfig, adapted: AdaptedModel, data: PreparedData) -> Part:
    rows = range(config.generated)
    lengths = adapted.prompt_lengths("test", rows)

    def side(keys: Ints) -> Callable[[], list[str]]:
        return lambda: (
            generate_answers(
                adapted,
                "test",
                rows,
                keys,
                batch_size=config.batch,
                decoding=Decoding(max_new_tokens=config.max_new_tokens),
            ).texts
        )

    # The sort is stable, so with equal keys the rows keep their order.
    sides = {"sorted by length": side(lengths), "unsorted": side(np.zeros_like(lengths))}
    with redirect_stderr(io.StringIO()):  # progress bars
        answers = [generate() for generate in sides.values()]
        times = interleaved(sides, config.rounds, config.device)
        memory = peaks(sides, config.device)
    same = float(np.mean([one == other for one, other in zip(*answers, strict=True)]))
    if same < 0.9:  # rounding may change the argmax of a model with random weights
        raise ValueError(f"the sides do not compute the same: {same:.0%} of answers are equal")
    what = f"generation in batches of {config.batch}, times faster"
    figure = compare(what, times, "sorted by length", "unsorted", at_least=True)
    padded = (lengths.min(), lengths.mean(), lengths.max())
    return figure, {
        "share of equal answers": same,
        "peak memory of generation in bytes": memory,
        "tokens of a prompt: least, mean, most": [round(float(n), 1) for n in padded],
    }


def _training(config: EvaluationConfig, adapted: AdaptedModel, data: PreparedData) -> Part:
    model = _hybrid(config, config.stand_in, data).train()
    collator = _collator(adapted.tokenizer, data)
    optimizer = torch.optim.AdamW(parameter_groups(model, _plan()))
    samples = range(config.trained)

    def made() -> dict[str, Tensor]:
        return {name: tensor.to(config.device) for name, tensor in collator(samples).items()}

    def prepared() -> Tensor:
        batch = made()
        return model.embed(batch["input_ids"], batch["slot_items"], batch["users"], hybrid=True)

    def step() -> None:
        model(**made(), hybrid=True)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    times = interleaved({"data": prepared, "step": step}, config.rounds, config.device)
    what = "collation and slot filling, as a share"
    return compare(what, times, "data", "step", 0.03), {}


def _data(config: EvaluationConfig) -> PreparedData:
    """Random titles, and rows whose histories differ in length."""
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(random.choice(syllables, size=3)) for _ in range(config.titles)]
    titles = [" ".join(random.choice(words, size=random.integers(1, 5))) for _ in words]
    rows = max(config.ranked, config.generated, config.trained)
    lengths = random.integers(3, config.history + 1, size=rows)
    histories = random.integers(config.titles, size=(rows, config.history))
    histories[np.arange(config.history) < config.history - lengths[:, None]] = PADDING
    candidates = np.argsort(random.random((rows, config.titles)), axis=1)[:, : config.candidates]
    split = Split(
        user_ids=np.arange(rows),
        histories=histories,
        history_lengths=lengths,
        targets=candidates[:, 0],
        candidates=candidates,
        is_last=np.ones(rows, dtype=bool),
    )
    return PreparedData(titles, {"test": split})


def _adapted(config: EvaluationConfig, shape: Shape, data: PreparedData) -> AdaptedModel:
    model = _hybrid(config, shape, data).eval().requires_grad_(False)
    store = PromptStore(new_tokenizer(data.titles, shape.vocabulary), data)
    return AdaptedModel(
        model, store, _vectors(data), prompt_history=config.history, user_slot=False
    )


def _plan() -> AdapterPlan:
    """A plan with default settings, for the optimiser's parameter groups."""
    return AdapterPlan(label="bench", seed=0, settings=AdapterSettings(), peft=LoraConfig())


def _hybrid(config: EvaluationConfig, shape: Shape, data: PreparedData) -> HybridModel:
    llm = ilora(shape, config.device, dropout=0.1)
    base = llm.get_base_model()
    assert isinstance(base, PreTrainedModel)
    items = torch.randn(data.num_items, ROUTING_DIM)
    projector = new_projector(items, token_embeddings(base), seed=0)
    return HybridModel(llm, projector, items, "vector").to(config.device)


def _vectors(data: PreparedData) -> Vectors:
    items = torch.randn(data.num_items, ROUTING_DIM)
    return Vectors({"test": _users(data)}, items, Normaliser.fit(items, _users(data)))


def _users(data: PreparedData) -> Tensor:
    return torch.randn(len(data.split("test")), ROUTING_DIM)


def _collator(tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> TrainingCollator:
    split = data.split("test")
    return TrainingCollator(
        prompts=encode_prompts(tokenizer, data.titles, split.histories, split.candidates),
        answers=encode_answers(tokenizer, data.titles),
        rows=np.arange(len(split)),
        targets=split.targets,
        pad_id=required_id(tokenizer, "pad"),
        users=_users(data),
    )
