"""The stand-in: a small Llama that a run trains itself, in place of a real language model.

It does not know language. It knows only the format: the answer to a prompt is one of the
candidates' titles, copied in full, followed by eos. It is trained on generated prompts whose
history and candidates are titles drawn uniformly from the catalogue, so it has seen neither users'
choices nor popularity. The answer would be a uniformly random candidate; to train faster, all
candidates follow in random order, each followed by eos, and all of them are targets. (With one
answer in each prompt, so small a model memorises the catalogue long before it learns to copy.)

So it has no preference that an adapter could inherit, except for titles that are easy to write.
Results with it show that the pipeline works, and how methods compare on this toy. They say nothing
about Llama-2-7B.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from recipes.artifacts import read_json, write_json
from recipes.data.padding import PADDING
from recipes.experiment import StandInConfig
from recipes.llm.divergence import check_loss, check_weights
from recipes.llm.loading import Outline, empty_model
from recipes.llm.stand_in_tokenizer import new_tokenizer
from recipes.llm.training import Samples, answer_loss, train_resumably, training_arguments
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import encode_answers, encode_prompts
from recipes.prompting.special_tokens import required_id
from recipes.records import Stage

STAND_IN = "stand-in"
"""Value of `adapt.llm` that selects the stand-in, and name of its folder."""
DESCRIPTION = "stand_in.json"
MARK = "peft_ilora_stand_in"
"""Field of a stand-in's `config.json`."""
VERSION = 1
"""Version of this stage, see `Record`."""


def stand_in_stage(
    config: StandInConfig, *, prompt_history: int, num_candidates: int, titles: str
) -> Stage:
    """The stage as a record describes it: everything that determines a stand-in.

    Args:
        config: Sizes of the model, and settings of its training.
        prompt_history: Maximum number of history items in a prompt.
        num_candidates: Number of candidates in a prompt.
        titles: Checksum of the table of items, the only part of the data that is read.
    """
    sizes = {"prompt_history": prompt_history, "num_candidates": num_candidates}
    return Stage(STAND_IN, asdict(config) | sizes, {"items.parquet": titles}, VERSION)


def check_stand_in(config: StandInConfig) -> None:
    """Refuse sizes that a Llama cannot have (ValueError)."""
    width, heads = config.hidden_size, config.num_heads
    if width % (2 * heads):
        raise ValueError(
            f"adapt.stand_in.hidden_size={width} must be a multiple of twice "
            f"adapt.stand_in.num_heads={heads}: a head's width is even"
        )


def stand_in_description(folder: Path) -> dict[str, Any] | None:
    """What `stand_in.json` says of the stand-in in a folder; None if it holds another model.

    A stand-in is recognised whatever its folder is called, also by its `config.json` alone.
    """
    path = folder / DESCRIPTION
    if path.is_file() and isinstance(found := read_json(path), dict):
        return found
    path = folder / "config.json"
    found = read_json(path) if path.is_file() else None
    return {} if isinstance(found, dict) and found.get(MARK) else None


class FormatTrainer(Trainer):
    """Trains all weights of the model on the answers."""

    rate: str
    """The field of the learning rate and its value, for messages."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean cross entropy of the batch's answer tokens; slots hold their placeholder token."""
        ids = {"input_ids": inputs["input_ids"]}
        loss = answer_loss(model, ids, inputs["attention_mask"], inputs["labels"])
        check_loss(loss, "the training of the stand-in", self.rate)
        return loss


def make_stand_in(
    config: StandInConfig,
    titles: Sequence[str],
    *,
    prompt_history: int,
    num_candidates: int,
    folder: Path,
    checkpoints: Path,
    logging_steps: int,
    save_steps: int,
) -> None:
    """Build, train and save a stand-in.

    Args:
        config: Sizes of the model, and settings of its training.
        titles: Title of each item, by item id.
        prompt_history: Maximum number of history items in a prompt.
        num_candidates: Number of candidates in a prompt.
        folder: Folder for `config.json`, `model.safetensors`, the tokenizer's files,
            `stand_in.json` and `loss.json`.
        checkpoints: Folder of checkpoints, from which an interrupted training resumes; deleted at
            the end.
        logging_steps: Optimiser steps between logged losses.
        save_steps: Optimiser steps between checkpoints.
    """
    tokenizer = new_tokenizer(titles, config.vocab_size)
    lessons = make_lessons(
        config, titles, tokenizer, prompt_history=prompt_history, num_candidates=num_candidates
    )
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(_llama_config(config, tokenizer, lessons))
    trainer = FormatTrainer(
        model=model,
        args=training_arguments(
            checkpoints,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
            save_steps=save_steps,
            logging_steps=logging_steps,
        ),
        data_collator=lessons,  # type: ignore[arg-type]  # it takes sample numbers, not dicts
        train_dataset=Samples(len(lessons.rows)),
    )
    trainer.rate = f"adapt.stand_in.learning_rate={config.learning_rate:g}"
    losses = train_resumably(trainer, "stand-in")
    check_weights(model, "the training of the stand-in", trainer.rate)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "loss.json", losses)
    write_json(
        folder / DESCRIPTION,
        {
            "stand_in": True,
            "meaning": "A small Llama that was taught the format of the prompts only, on random "
            "titles with random answers. It stands in for a real language model.",
            "parameters": model.num_parameters(),
            "vocabulary": len(tokenizer),
        },
    )
    shutil.rmtree(checkpoints, ignore_errors=True)


def stand_in_outline(
    config: StandInConfig, titles: Sequence[str], *, prompt_history: int, num_candidates: int
) -> Outline:
    """The stand-in as it will be; the arguments are those of `make_stand_in`."""
    tokenizer = new_tokenizer(titles, config.vocab_size)
    lessons = make_lessons(
        config, titles, tokenizer, prompt_history=prompt_history, num_candidates=num_candidates
    )
    return Outline(STAND_IN, tokenizer, empty_model(_llama_config(config, tokenizer, lessons)))


def make_lessons(
    config: StandInConfig,
    titles: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompt_history: int,
    num_candidates: int,
) -> TrainingCollator:
    """All training prompts with their answers; see the module's docstring."""
    random = np.random.default_rng(config.seed)
    count = config.max_steps * config.batch_size
    candidates = _distinct(random, count, len(titles), num_candidates)
    histories = random.integers(len(titles), size=(count, prompt_history))
    lengths = random.integers(1, prompt_history + 1, size=count)
    histories[np.arange(prompt_history) < prompt_history - lengths[:, None]] = PADDING
    answers = encode_answers(tokenizer, titles)
    orders = random.permuted(candidates, axis=1)
    return TrainingCollator(
        prompts=encode_prompts(tokenizer, titles, histories, candidates),
        answers=answers.take(orders.ravel()).regrouped(np.full(count, num_candidates)),
        rows=np.arange(count),
        targets=np.arange(count),
        pad_id=required_id(tokenizer, "pad"),
    )


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


def _llama_config(
    config: StandInConfig, tokenizer: PreTrainedTokenizerFast, lessons: TrainingCollator
) -> LlamaConfig:
    longest = lessons.prompts.input_ids.lengths.max() + lessons.answers.lengths.max()
    found = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=2 * int(longest),
        # Llama's 0.02 suits a width of thousands; at this width the model would learn to copy
        # much later.
        initializer_range=config.hidden_size**-0.5,
        # With tied embeddings one vector reads and writes a token, which makes copying easier.
        tie_word_embeddings=True,
        bos_token_id=required_id(tokenizer, "bos"),
        eos_token_id=required_id(tokenizer, "eos"),
        pad_token_id=required_id(tokenizer, "pad"),
    )
    setattr(found, MARK, True)
    return found
