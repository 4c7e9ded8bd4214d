"""What all adapters of a language model share: settings, training, prediction."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from peft import LoraConfig, PeftConfig

from recipes.experiment import AdapterSettings, EvaluateConfig, Experiment
from recipes.llm.adapted import adapted_model
from recipes.llm.adapter_plan import AdapterPlan
from recipes.llm.checkpoints import CHECKPOINTS
from recipes.llm.duration import check_duration, measurement_settings, training_steps
from recipes.llm.frozen_prefix import num_layers
from recipes.llm.preflight import check_adapter, position_limit
from recipes.llm.train_adapter import train_adapter, training_rows
from recipes.llm.training import check_trackers
from recipes.llm.validation import Measurements
from recipes.methods.fitting import (
    check_answers,
    check_room,
    longest_evaluated,
    longest_prompt,
)
from recipes.methods.method import Arm, Method, arm_folder
from recipes.methods.peft_options import check_options
from recipes.methods.settings import checked, positive_int, refuse_unknown
from recipes.methods.validating import (
    check_steps,
    check_validation,
    hit_ratio_on_validation,
    measurement_steps,
    measures,
    validation_rows,
)
from recipes.ranges import check_ranges
from recipes.recommenders.vectors import Vectors
from recipes.records import Stage, required_record
from recipes.run import Run
from recipes.scoring.arrays import Floats
from recipes.scoring.masking import Masked
from recipes.scoring.predictions import Predictions, Scorer, beam_scores, llm_predictions
from recipes.scoring.rows import EvaluatedRows

SOURCE = "recommender"
"""Setting of every adapter arm: name of the recommender whose vectors it reads."""
DURATION = ("max_steps", "epochs")
"""Settings of which an arm that gives one does not take the other from the section `adapt`."""
SHARED = ("precision", "chat_template", "logging_steps")
"""Settings that change the files which training writes, but that an arm cannot set by itself."""


class AdapterMethod(Method):
    """Trains a PEFT adapter and a projector on hybrid prompts, then ranks and generates."""

    is_adapter = True
    reads_language_model = True
    reads_candidates = True
    Config: ClassVar[type[AdapterSettings]] = AdapterSettings
    """Settings with defaults in the section `adapt`, which an arm may replace by its own values."""
    Peft: ClassVar[type[PeftConfig]] = LoraConfig
    """PEFT's configuration. An arm may also set its fields, except those in `derived` and those
    that `Config` has too."""
    derived: ClassVar[frozenset[str]] = frozenset(
        {"peft_type", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path"}
        | {"revision", "runtime_config", "peft_version"}
    )
    """Fields of `Peft` that an arm cannot set."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Settings of `Config` that the method sets itself, and their values. An arm cannot set them,
    and the section `adapt` does not change them."""
    unread: ClassVar[frozenset[str]] = frozenset()
    """Settings of `Config` that make no difference to the method. An arm cannot set them."""
    fixed_options: ClassVar[Mapping[str, Any]] = {}
    """Fields of `Peft` that the method sets itself, and their values. An arm cannot set them."""
    reads_vectors: ClassVar[bool] = True
    """Whether the arm reads a recommender's vectors. Without any there is no projector."""
    user_slot: ClassVar[bool] = False
    """Whether the prompt shows the user representation in a slot of its own."""
    puts_prefix: ClassVar[bool] = False
    """Whether keys and values are put in front of a prompt's (`recipes/llm/prefix.py`)."""
    version = 4

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The section `adapt` with the arm's own values in it, and the fields of `Peft` it sets."""
        all_settings = {spec.name for spec in fields(self.Config)}
        own = all_settings - self.fixed.keys() - self.unread
        options = {spec.name for spec in fields(self.Peft) if spec.init}
        options = options - all_settings - self.derived - self.fixed_options.keys()
        known = own | options | ({SOURCE} if self.reads_vectors else set())
        refuse_unknown(f"method {self.name}", given, known)
        given = self.with_total_rank(experiment, given)
        shared = {name: value for name, value in vars(experiment.adapt).items() if name in own}
        shared |= dict.fromkeys(DURATION) if given.keys() & set(DURATION) else {}
        shared |= self.fixed
        values = {name: value for name, value in given.items() if name in own}
        config = checked(self.Config, f"method {self.name}", shared, values, own)
        check_settings(config)
        check_duration(f"method {self.name}", config)
        check_validation(f"method {self.name}", experiment.adapt, config)
        settings = {name: value for name, value in asdict(config).items() if name in own}
        if self.reads_vectors:
            settings[SOURCE] = given.get(SOURCE, experiment.recommender.name)
            if not isinstance(settings[SOURCE], str):
                raise ValueError(
                    f"method {self.name}: {SOURCE}={settings[SOURCE]!r} must be a name"
                )
        chosen = {name: value for name, value in given.items() if name in options}
        settings |= {"options": {**self.fixed_options, **chosen}}
        check_options(f"method {self.name}", self.Peft, chosen)
        check_layers(f"method {self.name}", config, chosen, self.reads_prompt(settings))
        try:  # refuses impossible combinations early
            self.peft_config({**settings, **self.fixed}, routing_dim=1)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"method {self.name}: {error}") from error
        except ValueError as error:
            named = str(error).startswith((f"method {self.name}: ", "adapt."))
            raise error if named else ValueError(f"method {self.name}: {error}") from error
        return settings

    def with_total_rank(
        self, experiment: Experiment, given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The given settings, with the total `rank` in place of `r`.

        Raises:
            ValueError: Both `rank` and `r` are given.
        """
        refuse_both(self.name, given, ("rank", "r"))
        values = dict(given)
        if "r" in values:
            values["rank"] = positive_int(f"method {self.name}", "r", values.pop("r"))
        return values

    @abstractmethod
    def peft_config(self, settings: Mapping[str, Any], routing_dim: int) -> PeftConfig:
        """The PEFT configuration with which the language model is wrapped.

        Args:
            settings: All settings of the arm, and what the method sets itself.
            routing_dim: Width of the routing embeddings.

        Raises:
            ValueError: The settings cannot be combined.
        """

    def plan(self, run: Run, arm: Arm, seed: int) -> AdapterPlan:
        """What training and evaluation need to know about the adapter."""
        return AdapterPlan(
            label=f"{arm.name} seed {seed}",
            seed=seed,
            settings=self.settings_of(arm),
            peft=self.placed_config(run, arm, self.routing_dim(run, arm)),
            user_slot=self.user_slot,
            first_layer=self.first_layer(run, arm),
        )

    def vectors(self, run: Run, arm: Arm, seed: int, folder: Path) -> Vectors | None:
        """The vectors as the adapter reads them that lies in `folder`, or is being trained there.

        None for a method that reads none.
        """
        return run.vectors(arm.settings[SOURCE]) if self.reads_vectors else None

    def routing_dim(self, run: Run, arm: Arm) -> int:
        """Width of the vectors that route; 1 for a method that reads none."""
        return run.networks[arm.settings[SOURCE]].width if self.reads_vectors else 1

    def placed_config(self, run: Run, arm: Arm, routing_dim: int) -> PeftConfig:
        """`peft_config`, for the last layers of the model if the arm says so.

        Raises:
            ValueError: The model has fewer layers.
        """
        peft = self.peft_config({**arm.settings, **self.fixed}, routing_dim)
        wanted = self.settings_of(arm).last_layers
        if wanted is not None:
            model = run.outline.model
            count = num_layers(model)
            if count is None or wanted > count:
                raise ValueError(
                    f"adapt.last_layers={wanted} of arm {arm.name}: {type(model).__name__} has "
                    f"{count or 'an unknown number of'} layers"
                )
            setattr(peft, "layers_to_transform", list(range(count - wanted, count)))  # noqa: B010
        return peft

    def first_layer(self, run: Run, arm: Arm) -> int | None:
        """Index of the first adapted layer, if the layers below it are a frozen prefix."""
        settings = self.settings_of(arm)
        if not settings.frozen_prefix:
            return None
        count = num_layers(run.outline.model)
        assert count is not None and settings.last_layers is not None  # see `placed_config`
        return count - settings.last_layers

    def reads_prompt(self, settings: Mapping[str, Any]) -> bool:
        """Whether the adapter is routed by the prompt, and not by the recommender's vectors."""
        return False

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse trackers that are not there, and what does not fit the language model."""
        check_trackers(run.experiment.adapt.report_to)
        outline, settings = run.outline, self.settings_of(arm)
        width = self.routing_dim(run, arm)
        if self.reads_prompt(arm.settings):
            width = outline.model.get_input_embeddings().get_parameter("weight").shape[1]
        check_adapter(outline, self.placed_config(run, arm, width), arm.name)
        check_answers(run)
        store, split = run.outlined_prompts, run.experiment.evaluate.split
        layout = self.layout(settings)
        rows = training_rows(run.data.split("train"), settings)
        check_steps(arm.name, run.experiment.adapt, training_steps(settings, len(rows)))
        self._check_measurements(run, arm, len(rows))
        answer = int(store.answers.lengths.max())
        trained = longest_prompt(run, store.prompts("train", *layout).input_ids, rows, answer)
        longest = {"train split": trained}
        longest |= longest_evaluated(run, store.prompts(split, *layout).input_ids)
        for epoch, rows in self._tight_epochs(run, settings, *trained):
            prompts = store.redrawn(epoch, *layout).input_ids
            longest[f"train split, epoch {epoch + 1}"] = int(prompts.lengths[rows].max()), answer
        check_room(run, longest, settings.prompt_history)

    def _check_measurements(self, run: Run, arm: Arm, num_rows: int) -> None:
        """Refuse measurements that would never be made, or cannot be (ValueError)."""
        config, settings = run.experiment.adapt, self.settings_of(arm)
        if not measures(config):
            return
        if not measurement_steps(config, settings, num_rows):
            raise ValueError(
                f"{arm.name}: the training of {training_steps(settings, num_rows)} steps ends "
                f"before adapt.validate_every={config.validate_every:g} epochs are over: lower it"
            )
        self.check_measured(run, arm)

    def check_measured(self, run: Run, arm: Arm) -> None:
        """Refuse rows of validation that the arm cannot rank (ValueError)."""
        store, settings = run.outlined_prompts, self.settings_of(arm)
        rows = validation_rows(run, settings).rows
        prompts = store.prompts("val", *self.layout(settings)).input_ids
        answer = int(store.answers.lengths.max())
        longest = {"val split": longest_prompt(run, prompts, rows, answer)}
        check_room(run, longest, settings.prompt_history)

    def _tight_epochs(
        self, run: Run, settings: AdapterSettings, prompt: int, after: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The later epochs of a training and its rows, if new candidates may overrun the positions.

        They do not where even the longest titles in place of the shortest would fit.
        """
        limit, titles = position_limit(run.outline.model), run.outlined_prompts.answers.lengths
        room = int(titles.max() - titles.min()) * run.experiment.prepare.num_candidates
        redrawn = settings.redraw_candidates and settings.list_candidates
        if not redrawn or limit is None or prompt + room + after <= limit:
            return
        rows = training_rows(run.data.split("train"), settings)
        steps = training_steps(settings, len(rows))
        for epoch in range(1, math.ceil(steps * settings.batch_size / len(rows))):
            yield epoch, rows

    def layout(self, settings: AdapterSettings) -> tuple[int, bool, bool, bool]:
        """The arm's prompts, as `PromptStore.prompts` takes it."""
        return (
            settings.prompt_history,
            self.user_slot,
            settings.item_slots,
            settings.list_candidates,
        )

    def settings_of(self, arm: Arm) -> AdapterSettings:
        """The arm's settings as an instance of `Config`."""
        names = {spec.name for spec in fields(self.Config)} - self.fixed.keys() - self.unread
        return self.Config(**{name: arm.settings[name] for name in names}, **self.fixed)

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """Seeds 0 .. `experiment.seeds` - 1."""
        return list(range(experiment.seeds))

    def sources(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The recommender whose vectors fill the prompt's slots and route the adapter, if any."""
        return (settings[SOURCE],) if self.reads_vectors else ()

    def stage(self, run: Run, arm: Arm, seed: int) -> Stage:
        """The arm's training; its inputs are prompts, vectors and the language model."""
        shared = {name: getattr(run.experiment.adapt, name) for name in SHARED}
        shared |= measurement_settings(run.experiment)
        settings = {**arm.settings, **shared, "method": self.name, "seed": seed}
        files = run.prepared.files
        names = ("examples.parquet", "items.parquet", "candidates.parquet")
        inputs = {name: files[name] for name in names if name in files}
        if self.reads_vectors:
            inputs |= {SOURCE: run.network_record(arm.settings[SOURCE]).content}
        inputs |= {"language model": run.llm_content}
        return Stage(f"adapt {arm.name} seed {seed}", settings, inputs, self.version)

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Train the adapter and the projector."""
        plan, vectors = self.plan(run, arm, seed), self.vectors(run, arm, seed, folder)
        train_adapter(
            plan,
            run.experiment.adapt,
            run.llm,
            run.prompts,
            vectors,
            folder=folder,
            checkpoints=folder / CHECKPOINTS,
            states=run.state_folder,
            measurements=self._measurements(run, plan, vectors),
        )

    def _measurements(
        self, run: Run, plan: AdapterPlan, vectors: Vectors | None
    ) -> Measurements | None:
        """When the adapter is measured on validation, and what is made of it; None: never."""
        config, settings = run.experiment.adapt, plan.settings
        if not measures(config):
            return None
        rows = training_rows(run.data.split("train"), settings)
        return Measurements(
            steps=measurement_steps(config, settings, len(rows)),
            measure=hit_ratio_on_validation(run, plan, vectors),
            keeps_best=config.keep == "best",
            patience=config.patience,
        )

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows and candidates, and the trained adapter."""
        folder = arm_folder(run, arm, seed)
        record = required_record(self.stage(run, arm, seed), folder, "adapt")
        return super().inputs(run, arm, seed) | {"adapter": record.content}

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Log-probabilities of the candidates, greedy answers, and the gate's weights if any."""
        folder = arm_folder(run, arm, seed)
        plan, vectors = self.plan(run, arm, seed), self.vectors(run, arm, seed, folder)
        with adapted_model(plan, run.llm, run.prompts, vectors, folder) as adapted:
            return llm_predictions(adapted, plan.label, rows, config)

    def scorer(self, run: Run, arm: Arm, seed: int) -> AbstractContextManager[Scorer]:
        """The titles that the adapted model writes by beams, of all items (`beam_scores`).

        Beams write none of the user's earlier items where `evaluate.mask` leaves them out.
        """
        folder = arm_folder(run, arm, seed)
        plan, vectors = self.plan(run, arm, seed), self.vectors(run, arm, seed, folder)
        return beam_scorer(run, plan, vectors, folder)


@contextmanager
def beam_scorer(
    run: Run, plan: AdapterPlan, vectors: Vectors | None, folder: Path
) -> Iterator[Scorer]:
    """The block in which all items are ranked by the beams of an adapter that lies in `folder`."""
    config = run.experiment.evaluate
    with adapted_model(plan, run.llm, run.prompts, vectors, folder) as adapted:

        def scores(rows: EvaluatedRows) -> Floats:
            masks = config.mask == "history"
            masked = Masked.history(run.data, rows) if masks else Masked.nothing()
            return beam_scores(adapted, plan.label, rows, masked, config)

        yield scores


def refuse_both(method: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse more than one of the settings that determine the total rank (ValueError)."""
    both = [name for name in names if name in given]
    if len(both) > 1:
        values = " and ".join(f"{name}={given[name]!r}" for name in both)
        raise ValueError(f"method {method}: {values} both set the total rank; give one of them")


TRAINED_BELOW = ("modules_to_save", "trainable_token_indices", "layer_replication")
"""Options of PEFT's configurations that change what lies below the first adapted layer."""


def check_layers(
    owner: str, settings: AdapterSettings, options: Mapping[str, Any], reads_prompt: bool
) -> None:
    """Refuse what cannot be combined with adapting the last layers, or with keeping states.

    Args:
        owner: Names the arm's method in messages, such as `method lora`.
        settings: The arm's settings.
        options: The arm's options of PEFT's configuration.
        reads_prompt: Whether a gate reads the prompt's embeddings.

    Raises:
        ValueError: The message names the setting and the remedy.
    """
    if settings.last_layers is not None and options.get("layers_to_transform") is not None:
        raise ValueError(
            f"{owner}: adapt.last_layers={settings.last_layers} and layers_to_transform="
            f"{options['layers_to_transform']!r} both choose layers: give one of them"
        )
    if not settings.frozen_prefix:
        return
    kept = f"{owner}: adapt.frozen_prefix keeps the states below the first adapted layer"
    if settings.last_layers is None:
        raise ValueError(f"{kept}: set adapt.last_layers")
    if settings.redraw_candidates:
        raise ValueError(
            f"{kept}, but adapt.redraw_candidates=true makes other prompts in every epoch: set it "
            "false"
        )
    if reads_prompt:
        raise ValueError(
            f"{kept}, but gate_input='prompt' reads the token embeddings that they replace: choose "
            "another gate_input, or set adapt.frozen_prefix false"
        )
    below = [name for name in TRAINED_BELOW if options.get(name)]
    if options.get("bias") == "all":
        below.append("bias")
    if below:
        raise ValueError(
            f"{kept}, which {below[0]}={options[below[0]]!r} would change: leave it out, or set "
            "adapt.frozen_prefix false"
        )


def check_settings(settings: AdapterSettings) -> None:
    """Refuse impossible values before anything is loaded.

    Raises:
        ValueError: A value is impossible; the message names the field and the remedy.
    """
    check_ranges(settings, "adapt.")
    if settings.batch_size % settings.gradient_accumulation_steps:
        raise ValueError(
            f"adapt.batch_size={settings.batch_size} counts the prompts of an optimiser step: make "
            "it a multiple of adapt.gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps}"
        )
    counted = [one for one in settings.mistakes if one.startswith("curriculum")]
    if counted and not settings.curriculum:
        raise ValueError(
            f"adapt.mistakes names {counted[0]!r}, but adapt.curriculum=false makes every batch "
            "hybrid: leave it out, or set adapt.curriculum true"
        )
