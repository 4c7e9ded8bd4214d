"""What adapter and stand-in training share: Trainer arguments, loss, progress bar, resuming."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from recipes.experiment import Precision
from recipes.llm.checkpoints import Sealing, last_complete_checkpoint
from recipes.prompting.collator import IGNORED

WARM_UP = 0.05
"""Share of the steps in which the learning rate warms up (paper: 5 %)."""


class Samples(Dataset[int]):
    """A dataset of sample numbers; the collator looks up the samples themselves."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def training_arguments(
    checkpoints: Path,
    *,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    save_steps: int,
    logging_steps: int,
    gradient_accumulation_steps: int = 1,
    precision: Precision = "fp32",
    report_to: list[str] | None = None,
    learning_rate_floor: float = 0.0,
) -> TrainingArguments:
    """Arguments of the Trainer.

    The optimiser is AdamW, with linear warm-up and cosine decay of the learning rate. Without a
    floor the first step has the learning rate 0. With one, the first and the last step have that
    share of the peak, and the last step of the warm-up has the peak. There is no evaluation, and
    only the newest checkpoint is kept.

    `checkpoints` is the folder of checkpoints and `batch_size` the number of prompts in an
    optimiser step on one device. The other arguments are those of `AdaptConfig`.
    """
    floor = {"warmup_lr_rate": learning_rate_floor, "min_lr_rate": learning_rate_floor}
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size // gradient_accumulation_steps,
        gradient_accumulation_steps=gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_warmup_with_min_lr" if learning_rate_floor else "cosine",
        lr_scheduler_kwargs=floor if learning_rate_floor else None,
        warmup_steps=WARM_UP,
        seed=seed,
        data_seed=seed,
        bf16=precision == "bf16",
        save_steps=save_steps,
        save_total_limit=1,
        logging_steps=logging_steps,
        report_to=report_to or "none",
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse experiment trackers that the Trainer does not know, or that are not installed.

    Raises:
        ValueError: A tracker cannot be used.
    """
    for name in names:
        if name in ("all", "none"):
            continue
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ValueError, RuntimeError, ImportError, AssertionError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"adapt.report_to names {name!r}, which cannot be used: {said}"
            ) from error


def answer_loss(
    llm: nn.Module,
    inputs: dict[str, Any],
    attention_mask: Tensor,
    labels: Tensor,
    total: Tensor | int | None = None,
) -> Tensor:
    """Mean cross entropy of the answers' tokens.

    Positions are counted from each prompt's first token, as in `generate`, so left padding does not
    shift the positions of a model with absolute ones. The head is evaluated only at the last a + 1
    positions, among which are all those that predict targets.

    Args:
        llm: A causal language model, with or without an adapter.
        inputs: Its `input_ids` or `inputs_embeds`, and further keywords such as `routing_embeds`.
        attention_mask: int64 [b, t].
        labels: int64 [b, a], targets at the last a positions, -100 where there is none.
        total: Number of targets in a whole accumulated batch, by which the sum is divided; None
            divides by the number of targets in `labels`.
    """
    width = labels.shape[1]
    outputs = llm(
        attention_mask=attention_mask,
        use_cache=False,
        **inputs,
        **accepted(
            llm,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=width + 1,
        ),
    )
    # [b, a, vocabulary]: the logits that predict the last a positions
    logits = outputs.logits[:, -width - 1 : -1].float()
    count = (labels != IGNORED).sum() if total is None else total
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / count


def accepted(llm: nn.Module, **optional: Tensor | int) -> dict[str, Tensor | int]:
    """The keywords that a model's forward has. A model without `position_ids` needs none."""
    base = llm if isinstance(llm, PreTrainedModel) else llm.get_base_model()  # type: ignore[operator]
    known = inspect.signature(base.forward).parameters
    return {name: value for name, value in optional.items() if name in known}


class LossOnBar(ProgressCallback):
    """The Trainer's progress bar with a label, and with the loss on it instead of printed below."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.label)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def never(state: TrainerState) -> bool:
    """Says of no training that it has ended before its last step."""
    return False


def train_resumably(
    trainer: Trainer, label: str, is_over: Callable[[TrainerState], bool] = never
) -> list[dict[str, float]]:
    """Train, resuming from the last complete checkpoint if there is one.

    Args:
        trainer: The trainer.
        label: Label of the progress bar.
        is_over: Whether a training with this state has ended, though not with its last step.

    Returns:
        The loss curve, a list of `{"step": ..., "loss": ...}`. Each loss is the mean since the
        entry before.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossOnBar(label))
    trainer.add_callback(Sealing())
    found = last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if found is None:
        trainer.train()
    else:
        checkpoint, state = found
        print(f"[{label}] resuming from {checkpoint.name}", flush=True)
        if state.global_step < trainer.args.max_steps and not is_over(state):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        else:  # Training was interrupted after its last step; the Trainer would take one more.
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
    return [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
