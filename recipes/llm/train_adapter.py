"""One adapter: from the inputs of a run to a folder that `load_adapted` reads.

adapter/                  PEFT's `save_pretrained`: adapter, its gate, its configuration
projector.safetensors     see `Projector`
normaliser.safetensors    see `Normaliser`
loss.json                 the loss curve: [{"step", "loss"}, ..]
parameters.json           trained parameters: adapter, gate, projector, total
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.artifacts import write_json, write_tensors
from recipes.data.tables import PreparedData
from recipes.experiment import AdaptConfig, Method
from recipes.llm.adapter_trainer import AdapterTrainer
from recipes.llm.hybrid_model import PROJECTOR, HybridModel
from recipes.llm.language_model import load_language_model, peft_wrapping, token_embeddings
from recipes.llm.methods import has_user_slot, peft_config, uses_routing
from recipes.llm.training import train_resumably, training_arguments
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import encode_answers, encode_prompts
from recipes.prompting.normaliser import Normaliser
from recipes.prompting.projector import new_projector
from recipes.prompting.special_tokens import required_id
from recipes.recommender.representations import Representations

ADAPTER_FOLDER = "adapter"
NORMALISER = "normaliser.safetensors"
TOKENS = "tokens"
"""Folder of a run, beside its stages: see `tokenised`."""


@dataclass(frozen=True)
class Inputs:
    """What every adapter of a run is trained on."""

    data: PreparedData
    representations: Representations
    normaliser: Normaliser
    tokens: Path

    @classmethod
    def load(cls, run: Path) -> "Inputs":
        data = PreparedData.load(run / "prepare")
        representations = Representations.load(run / "recommender")
        normaliser = Normaliser.fit(representations.items, representations.users["train"])
        return cls(data, representations, normaliser, run / TOKENS)


def train_adapter(
    config: AdaptConfig,
    method: Method,
    seed: int,
    inputs: Inputs,
    *,
    llm: str,
    folder: Path,
    checkpoints: Path,
) -> None:
    """Train one adapter and write its folder.

    Args:
        config: The stage's.
        method: Decides the adapter and the prompt.
        seed: Decides initial weights, data order, dropout and curriculum.
        inputs: Data and representations.
        llm: Name or path of the language model.
        folder: Gets the files named above.
        checkpoints: From which an interrupted training resumes; removed at the end.
    """
    base, tokenizer = load_language_model(llm, config.precision)
    collator = _collator(config, method, inputs, tokenizer)
    _check_lengths(collator, base, config)
    trainer = AdapterTrainer(
        _new_model(config, method, seed, inputs, base),
        collator,
        config,
        training_arguments(
            checkpoints,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=seed,
            save_steps=config.save_steps,
            logging_steps=config.logging_steps,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            precision=config.precision,
            report_to=config.report_to,
        ),
    )
    losses = train_resumably(trainer, f"{method} seed {seed}")
    _save(trainer.hybrid_model.cpu(), inputs.normaliser, losses, folder)
    shutil.rmtree(checkpoints)


def _new_model(
    config: AdaptConfig, method: Method, seed: int, inputs: Inputs, base: PreTrainedModel
) -> HybridModel:
    items = inputs.normaliser.items(inputs.representations.items)
    projector = new_projector(items, token_embeddings(base), seed)
    torch.manual_seed(seed)
    with peft_wrapping():
        llm = get_peft_model(base, peft_config(method, config, routing_dim=items.shape[1]))
    assert isinstance(llm, PeftModel)
    return HybridModel(llm, projector, items, routed=uses_routing(method))


def _collator(
    config: AdaptConfig, method: Method, inputs: Inputs, tokenizer: PreTrainedTokenizerBase
) -> TrainingCollator:
    split = inputs.data.split("train")
    rows = (split.history_lengths >= config.min_history).nonzero()[0]
    if len(rows) == 0:
        raise ValueError(
            f"adapt.min_history={config.min_history} leaves no training window: the longest "
            f"history has {split.history_lengths.max()} items"
        )
    return TrainingCollator(
        prompts=encode_prompts(
            tokenizer,
            inputs.data.titles,
            split.histories[:, -config.prompt_history :],
            split.candidates,
            user_slot=has_user_slot(method),
            cache=inputs.tokens,
        ),
        answers=encode_answers(tokenizer, inputs.data.titles, cache=inputs.tokens),
        rows=rows,
        targets=split.targets[rows],
        pad_id=required_id(tokenizer, "pad"),
        users=inputs.normaliser.users(inputs.representations.users["train"]),
    )


def _check_lengths(collator: TrainingCollator, base: PreTrainedModel, config: AdaptConfig) -> None:
    longest = collator.prompts.input_ids.lengths.max() + collator.answers.lengths.max()
    limit = getattr(base.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"the longest prompt and answer take {longest} tokens, but adapt.llm={config.llm!r} "
            f"has {limit} positions: lower adapt.prompt_history={config.prompt_history} or "
            "prepare.num_candidates"
        )


def _save(
    model: HybridModel, normaliser: Normaliser, losses: list[dict[str, float]], folder: Path
) -> None:
    model.llm.save_pretrained(str(folder / ADAPTER_FOLDER))
    write_tensors(folder / PROJECTOR, model.projector.state_dict())
    normaliser.save(folder / NORMALISER)
    write_json(folder / "loss.json", losses)
    groups = model.trainable_parameters()
    counts = {name: sum(p.numel() for p in group.values()) for name, group in groups.items()}
    write_json(folder / "parameters.json", {**counts, "total": sum(counts.values())})
