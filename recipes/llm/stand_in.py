"""The stand-in: a small Llama that a run trains itself, in place of a real language model.

It knows no language. Of its two forms (`adapt.stand_in.titles`) one has a token for each title. It
knows which titles train users choose near each other, and what follows what in their sequences:
its embeddings start from the co-occurrences of the train windows (`title_vectors`), and it is
trained to predict the next title of these. The other has subwords, and knows nothing of the
catalogue. Both are taught the format of the prompts, on random titles with random answers
(`lessons`), so neither has a preference among candidates before it is adapted.

Results with it show that the pipeline works, and how methods compare on this toy. They say nothing
about Llama-2-7B.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from recipes.artifacts import read_json, write_json
from recipes.data.tables import Split
from recipes.experiment import StandInConfig
from recipes.llm.divergence import check_loss, check_weights
from recipes.llm.lessons import Lessons, subword_lessons, title_lessons, title_tokens
from recipes.llm.loading import Outline, empty_model
from recipes.llm.title_vectors import title_vectors
from recipes.llm.training import Samples, answer_loss, train_resumably, training_arguments
from recipes.prompting.special_tokens import required_id
from recipes.records import Stage

STAND_IN = "stand-in"
"""Value of `adapt.llm` that selects the stand-in, and name of its folder."""
DESCRIPTION = "stand_in.json"
MARK = "peft_ilora_stand_in"
"""Field of a stand-in's `config.json`, which holds its form."""
VERSION = 2
"""Version of this stage, see `Record`."""

Form = Literal["token", "subword"]
MEANINGS: dict[Form, str] = {
    "token": "a tiny Llama made on the spot, to which every title is one token. It knows the "
    "format of the prompts and, from the interactions of the train users alone, which titles are "
    "chosen near each other and what follows what. It knows no language: not one word of a title",
    "subword": "a tiny Llama made on the spot, which knows the format of the prompts and nothing "
    "else: neither language nor the catalogue",
}
"""What a stand-in of each form is, for reports."""


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
    if not isinstance(found, dict) or not found.get(MARK):
        return None
    return {"meaning": MEANINGS["token" if found[MARK] == "token" else "subword"]}


@dataclass(frozen=True)
class StandIn:
    """A stand-in as it is to be made: everything that determines it."""

    config: StandInConfig
    """Sizes of the model, and settings of its training."""
    form: Form
    """What a token is: `config.titles`, or what stands for it."""
    prompt_history: int
    """Maximum number of history items in a prompt."""
    num_candidates: int
    """Number of candidates in a prompt."""
    titles: Sequence[str]
    """Title of each item, by item id."""
    train: Split | None
    """The train windows, which the form `token` knows; the other does not read them."""

    @cached_property
    def lessons(self) -> Lessons:
        """What it is taught."""
        sizes = {"prompt_history": self.prompt_history, "num_candidates": self.num_candidates}
        if self.train is None or self.form == "subword":
            return subword_lessons(self.config, self.titles, **sizes)
        return title_lessons(self.config, self.titles, self.train, **sizes)

    def outline(self) -> Outline:
        """The stand-in as it will be, without weights."""
        return Outline(STAND_IN, self.lessons.tokenizer, empty_model(self.llama_config()))

    def llama_config(self) -> LlamaConfig:
        """Configuration of the model."""
        config, tokenizer = self.config, self.lessons.tokenizer
        found = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=2 * self.lessons.longest,
            # Llama's 0.02 suits a width of thousands; at this width the model would learn to copy
            # much later.
            initializer_range=config.hidden_size**-0.5,
            # With tied embeddings one vector reads and writes a token, which makes copying easier.
            tie_word_embeddings=True,
            bos_token_id=required_id(tokenizer, "bos"),
            eos_token_id=required_id(tokenizer, "eos"),
            pad_token_id=required_id(tokenizer, "pad"),
        )
        setattr(found, MARK, self.form)
        return found

    def new_model(self) -> LlamaForCausalLM:
        """The model before its training."""
        torch.manual_seed(self.config.seed)
        model = LlamaForCausalLM(self.llama_config())
        if self.train is not None and self.form == "token":
            tokens = title_tokens(self.lessons.tokenizer, self.titles)
            used, kinds = np.unique(tokens, return_inverse=True)
            vectors = title_vectors(self.train, kinds, self.config.hidden_size, self.config.seed)
            known = vectors.any(axis=1)  # a title that no train user chooses stays random
            with torch.no_grad():
                weight = model.get_input_embeddings().get_parameter("weight")
                weight[torch.from_numpy(used[known])] = torch.from_numpy(vectors[known]).float()
            _start_by_copying(model)
        return model


@torch.no_grad()
def _start_by_copying(model: LlamaForCausalLM) -> None:
    """Let attention hand on what it attends to: `W_O W_V = 1` in every layer, and no MLP at first.

    Only where to attend is left to be learned. From random matrices so small a model takes
    thousands of steps to learn to copy one of many titles.
    """
    layers: Any = model.model.layers
    for layer in layers:
        value = layer.self_attn.v_proj.weight
        nn.init.orthogonal_(value)
        layer.self_attn.o_proj.weight.copy_(value.T)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def stand_in_stage(
    config: StandInConfig,
    form: Form,
    *,
    prompt_history: int,
    num_candidates: int,
    titles: str,
    train: Split | None,
) -> Stage:
    """The stage as a record describes it: everything that determines a stand-in.

    Args:
        config: Sizes of the model, and settings of its training.
        form: What a token is.
        prompt_history: Maximum number of history items in a prompt.
        num_candidates: Number of candidates in a prompt.
        titles: Checksum of the table of items.
        train: The train windows, if the form reads them.
    """
    sizes = {"prompt_history": prompt_history, "num_candidates": num_candidates, "titles": form}
    inputs = {"items.parquet": titles}
    if train is not None:
        inputs["train windows"] = _digest(train)
    return Stage(STAND_IN, asdict(config) | sizes, inputs, VERSION)


def _digest(train: Split) -> str:
    """SHA-256 of what a stand-in reads of the train windows."""
    digest = hashlib.sha256()
    for array in (train.histories, train.history_lengths, train.targets):
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class LessonTrainer(Trainer):
    """Trains all weights of the model on the answers."""

    rate: str
    """The field of the learning rate and its value, for messages."""
    in_order: bool
    """Whether samples are taken in their order."""

    def _get_train_sampler(self, train_dataset: Dataset[int] | None = None) -> Sampler[int] | None:
        if self.in_order:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
        return super()._get_train_sampler(train_dataset)

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
    plan: StandIn, *, folder: Path, checkpoints: Path, logging_steps: int, save_steps: int
) -> None:
    """Build, train and save a stand-in.

    Args:
        plan: The stand-in.
        folder: Folder for `config.json`, `model.safetensors`, the tokenizer's files,
            `stand_in.json` and `loss.json`.
        checkpoints: Folder of checkpoints, from which an interrupted training resumes; deleted at
            the end.
        logging_steps: Optimiser steps between logged losses.
        save_steps: Optimiser steps between checkpoints.
    """
    config, lessons, model = plan.config, plan.lessons, plan.new_model()
    trainer = LessonTrainer(
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
        train_dataset=Samples(config.max_steps * config.batch_size),
    )
    trainer.rate = f"adapt.stand_in.learning_rate={config.learning_rate:g}"
    trainer.in_order = lessons.in_order
    losses = train_resumably(trainer, "stand-in")
    check_weights(model, "the training of the stand-in", trainer.rate)
    model.cpu().save_pretrained(folder)
    lessons.tokenizer.save_pretrained(folder)
    write_json(folder / "loss.json", losses)
    write_json(
        folder / DESCRIPTION,
        {
            "stand_in": True,
            "titles": plan.form,
            "meaning": MEANINGS[plan.form],
            "parameters": model.num_parameters(),
            "vocabulary": len(lessons.tokenizer),
        },
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
