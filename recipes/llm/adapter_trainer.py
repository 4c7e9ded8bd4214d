"""The Trainer of adapters, with curriculum, parameter groups and checkpoints of its own."""

from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.curriculum import hybrid_steps
from recipes.llm.divergence import check_loss, check_weights
from recipes.llm.duration import steps_of_epoch
from recipes.llm.hybrid_model import HybridModel
from recipes.llm.kept_states import StatesCollator
from recipes.llm.length_groups import LengthGroups
from recipes.llm.training import Samples
from recipes.llm.validation import Measurements, Validation
from recipes.prompting.collator import TrainingCollator


class AdapterTrainer(Trainer):
    """Trains the adapter and the projector of a `HybridModel`.

    Args:
        model: The model to train.
        collator: Holds the samples and collates them into batches.
        plan: Sets learning rates, weight decay and curriculum.
        args: The Trainer's arguments; `args.seed` determines data order, dropout and curriculum.
        measurements: When the model is measured on validation; None measures nothing.
    """

    def __init__(
        self,
        model: HybridModel,
        collator: TrainingCollator | StatesCollator,
        plan: AdapterPlan,
        args: TrainingArguments,
        measurements: Measurements | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,  # type: ignore[arg-type]  # it takes sample numbers, not dicts
            train_dataset=Samples(len(collator.rows)),
        )
        self.hybrid_model = model
        self.collator = collator
        self.plan = plan
        self.hybrid_steps = hybrid_steps(
            args.max_steps,
            args.seed,
            curriculum=plan.settings.curriculum,
            epoch=steps_of_epoch(plan.settings, len(collator.rows)),
            mistakes=plan.settings.mistakes,
        )
        self.validation = None if measurements is None else Validation(model, measurements)
        if self.validation is not None:
            self.add_callback(self.validation)

    def _get_train_sampler(self, train_dataset: Dataset[int] | None = None) -> LengthGroups:
        order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroups(order, self.collator.lengths, batch_size)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss on hybrid or text-only prompts, as the curriculum decides for the step."""
        # global_step counts finished steps, so all micro-batches of a step are of the same kind.
        hybrid = bool(self.hybrid_steps[self.state.global_step])
        inputs = {**inputs, "hybrid": hybrid}
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_loss(found[0] if isinstance(found, tuple) else found, self.what, self.rate)
        return found

    @property
    def what(self) -> str:
        """What is trained, for messages."""
        return f"the training of {self.plan.label}"

    @property
    def rate(self) -> str:
        """The field of the learning rate and its value, for messages."""
        return f"adapt.learning_rate={self.plan.settings.learning_rate:g}"

    @torch.no_grad()
    def check_result(self) -> None:
        """Refuse what has diverged in the last step, whose loss nobody has seen (ValueError)."""
        check_weights(self.hybrid_model, self.what, self.rate)
        batch = self._prepare_inputs(self.collator(range(min(2, len(self.collator.rows)))))
        loss = self.hybrid_model.eval()(**batch, hybrid=True)["loss"]
        check_loss(loss, self.what, self.rate)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one parameter group each for adapter, projector and gate."""
        if self.optimizer is None:
            groups = parameter_groups(self.hybrid_model, self.plan)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer would save the frozen base model and pickle its arguments.
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self.hybrid_model.save_checkpoint(folder)
            if self.validation is not None:
                self.validation.save(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.hybrid_model.load_checkpoint(Path(resume_from_checkpoint))
        if self.validation is not None:
            self.validation.load(Path(resume_from_checkpoint))


def parameter_groups(model: HybridModel, plan: AdapterPlan) -> list[dict[str, Any]]:
    """Parameter groups: only projector and gate decay; the gate has its own learning rate.

    Source: the reference code, with weight decay for projector and router but not for LoRA, and
    0.3 times the learning rate for the router.
    """
    rate, decay = plan.settings.learning_rate, plan.settings.weight_decay
    settings = {
        "adapter": {"lr": rate, "weight_decay": 0.0},
        "projector": {"lr": rate, "weight_decay": decay},
        "gate": {"lr": rate * plan.gate_learning_rate_scale, "weight_decay": decay},
    }
    return [
        {"params": list(parameters.values()), **settings[name]}
        for name, parameters in model.trainable_parameters().items()
        if parameters
    ]
