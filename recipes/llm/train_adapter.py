"""Trains one adapter on prompts and vectors, and writes the folder that `adapted.py` reads:

adapter/                  PEFT's `save_pretrained`: adapter, its gate, its configuration
projector.safetensors     see `Projector`; like the next one, only if vectors are read
normaliser.safetensors    see `Normaliser`
prefix.safetensors        see `UserPrefix`; only if the plan has one
loss.json                 the loss curve: [{"step", "loss"}, ..]
validation.json           [{"step", "validation"}, ..], if anything was measured (`Validation`)
training.json             steps: planned, trained (fewer if patience ended), kept (whose adapter it
                          is), and the kept one's HitRatio@1 on validation, if it was measured
parameters.json           numbers of trained parameters: adapter, gate, projector, total
"""

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from recipes.artifacts import write_json
from recipes.data.tables import Split
from recipes.experiment import AdaptConfig, AdapterSettings
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.adapter_trainer import AdapterTrainer
from recipes.llm.duration import training_steps
from recipes.llm.frozen_prefix import decoder_layers, without_layers
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.kept_states import StatesCollator, kept_states
from recipes.llm.language_model import LanguageModel, best_device, token_embeddings
from recipes.llm.starts import start_adapter
from recipes.llm.training import never, train_resumably, training_arguments
from recipes.llm.validation import MEASURED, Measurements, best_of, measured
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import EncodedPrompts
from recipes.prompting.projector import new_projector
from recipes.prompting.special_tokens import required_id
from recipes.prompting.store import PromptStore
from recipes.recommenders.vectors import Vectors

ADAPTER_FOLDER = "adapter"
NORMALISER = "normaliser.safetensors"
LOSS, PARAMETERS, VALIDATION = "loss.json", "parameters.json", "validation.json"
TRAINING = "training.json"


def train_adapter(
    plan: AdapterPlan,
    config: AdaptConfig,
    llm: LanguageModel,
    store: PromptStore,
    vectors: Vectors | None,
    *,
    folder: Path,
    checkpoints: Path,
    states: Path,
    measurements: Measurements | None = None,
) -> None:
    """Train one adapter and write its folder.

    Args:
        plan: The adapter and its settings.
        config: The stage's settings of precision, checkpoints and logging.
        llm: The language model, which is restored afterwards.
        store: Prompts and answers.
        vectors: Vectors of the recommender; None if the adapter reads none.
        folder: Folder for the files that the module's docstring lists.
        checkpoints: Folder of checkpoints, from which an interrupted training resumes; deleted at
            the end.
        states: Where the states of this language model's frozen prefix are kept.
        measurements: When the adapter is measured on validation, and whether a step is chosen by
            it; None measures nothing and keeps the last step.

    Raises:
        ValueError: No window is long enough to train on, the training has diverged, or the disk has
            no room for states.
    """
    collator: TrainingCollator | StatesCollator = training_collator(plan, store, vectors)
    settings, first = plan.settings, plan.first_layer
    entered = token_embeddings(llm.base)
    if first is not None:
        torch.nn.Module.to(llm.base, best_device())
        kept = kept_states(llm.base, first, collator, states)
        collator, entered = StatesCollator(collator, kept), kept.last()
    projector = items = None
    if vectors is not None:
        # Made before the adapter, so that all adapters of a seed start from the same projector.
        items, projector = vectors.items, new_projector(vectors.items, entered, plan.seed)
        projector.requires_grad_(plan.has_slots)
    torch.manual_seed(plan.seed)
    with (
        llm.wrapped(plan.peft) as model,
        without_layers(decoder_layers(llm.base), range(first)) if first else nullcontext(),
    ):
        prefix = start_adapter(model, plan, llm.base)
        hybrid = HybridModel(model, projector, items, plan.routed_by, first, prefix)
        trainer = AdapterTrainer(
            hybrid,
            collator,
            plan,
            training_arguments(
                checkpoints,
                max_steps=training_steps(settings, len(collator.rows)),
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=plan.seed,
                save_steps=config.save_steps,
                logging_steps=config.logging_steps,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                precision=config.precision,
                report_to=config.report_to,
                learning_rate_floor=settings.learning_rate_floor,
            ),
            measurements,
        )
        validation = trainer.validation
        losses = train_resumably(
            trainer, plan.label, never if validation is None else validation.is_over
        )
        trainer.check_result()
        if validation is not None:
            validation.restore()
            write_json(folder / VALIDATION, measured(trainer.state))
        write_json(folder / TRAINING, trained_steps(trainer))
        _save(hybrid.cpu(), vectors, losses, folder)
    shutil.rmtree(checkpoints)


def trained_steps(trainer: AdapterTrainer) -> dict[str, float]:
    """The content of `training.json`."""
    trained, validation = trainer.state.global_step, trainer.validation
    found: dict[str, float] = {"planned": trainer.args.max_steps, "trained": trained}
    if validation is None or not validation.plan.keeps_best:
        return {**found, "kept": trained}
    best = best_of(measured(trainer.state))
    return {**found, "kept": best["step"], MEASURED: best[MEASURED]}


def training_collator(
    plan: AdapterPlan, store: PromptStore, vectors: Vectors | None
) -> TrainingCollator:
    """The collator of the train windows on which an adapter is trained.

    Raises:
        ValueError: `min_history` leaves no window.
    """
    split, settings = store.data.split("train"), plan.settings
    rows = training_rows(split, settings)
    layout = (
        settings.prompt_history,
        plan.user_slot,
        settings.item_slots,
        settings.list_candidates,
    )

    def later(epoch: int) -> EncodedPrompts:
        return store.redrawn(epoch, *layout)

    return TrainingCollator(
        prompts=store.prompts("train", *layout),
        answers=store.answers,
        rows=rows,
        targets=split.targets[rows],
        pad_id=required_id(store.tokenizer, "pad"),
        users=None if vectors is None else vectors.users["train"],
        later=later if settings.redraw_candidates else None,
    )


def training_rows(split: Split, settings: AdapterSettings) -> NDArray[np.int64]:
    """The rows of the train split on which an adapter is trained.

    Raises:
        ValueError: `min_history` leaves no window.
    """
    rows = (split.history_lengths >= settings.min_history).nonzero()[0]
    if len(rows) == 0:
        raise ValueError(
            f"adapt.min_history={settings.min_history} leaves no training window: the longest "
            f"history has {split.history_lengths.max()} items"
        )
    if settings.train_windows is not None and settings.train_windows < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, settings.train_windows).round().astype(np.int64)]
    return rows


def _save(
    hybrid: HybridModel, vectors: Vectors | None, losses: list[dict[str, float]], folder: Path
) -> None:
    assert isinstance(hybrid.llm, PeftModel)
    for config in hybrid.llm.peft_config.values():
        if isinstance(modules := getattr(config, "target_modules", None), set):
            setattr(config, "target_modules", sorted(modules))  # noqa: B010  # the same file always
    hybrid.llm.save_pretrained(str(folder / ADAPTER_FOLDER))
    hybrid.save_modules(folder)
    if vectors is not None:
        vectors.normaliser.save(folder / NORMALISER)
    write_json(folder / LOSS, losses)
    groups = hybrid.trainable_parameters()
    counts = {name: sum(p.numel() for p in group.values()) for name, group in groups.items()}
    write_json(folder / PARAMETERS, {**counts, "total": sum(counts.values())})
