"""The interface of a method: its description, settings, inputs, training and predictions.

A method that trains nothing overrides only `scorer`, and `configure` if it has settings (see
`CounterMethod`). An adapter of a language model derives from `AdapterMethod`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from recipes.about import About
from recipes.experiment import EvaluateConfig, Experiment
from recipes.llm.duration import measurement_settings
from recipes.records import Stage
from recipes.run import Network, Run
from recipes.scoring.predictions import Predictions, Scorer
from recipes.scoring.rows import EvaluatedRows


@dataclass(frozen=True)
class Arm:
    """A method in one setting, which becomes a row of the report."""

    name: str
    """Identifies the arm in folder names and tables: `ilora`, `ilora,num_experts=8`."""
    method: "Method"
    given: Mapping[str, Any]
    """The arm's own settings, as the user wrote them, but for `tune`."""
    settings: Mapping[str, Any]
    """All settings that determine the arm's result, and no others."""
    is_trial: bool = False
    """Whether another arm chooses among this one and others."""

    @property
    def title(self) -> str:
        """Name of the arm in tables and plots, such as `iLoRA, num_experts 8`."""
        told = {k: value for k, value in self.given.items() if k not in self.method.untold}
        own = ", ".join(f"{key} {shown(value)}" for key, value in told.items())
        return f"{self.method.about.title}, {own}" if own else self.method.about.title


def shown(value: Any) -> str:
    """A setting's value as it is written in the name of an arm or cell."""
    if isinstance(value, (list, tuple)):
        return "+".join(shown(one) for one in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def default_name(method: str, given: Mapping[str, Any]) -> str:
    """The name of an arm that has none of its own: its method and settings."""
    return ",".join([method, *(f"{key}={shown(value)}" for key, value in given.items())])


LONGEST_NAME = 100
"""Most bytes of a folder's name; a longer name is cut and ends in a checksum."""


def folder_name(name: str, *, distinct: bool = False) -> str:
    """The name of an arm or cell as the name of a folder.

    Args:
        name: The name, as the user wrote it.
        distinct: Whether a name with characters that are replaced ends in a checksum, so that
            different names are different folders.
    """
    clean = re.sub(r"[^\w.,=+-]", "_", name)
    if len(clean.encode()) <= LONGEST_NAME and (clean == name or not distinct):
        return clean
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


class Method:
    """Base class of methods. Subclasses are listed in `recipes/methods/__init__.py`."""

    name: str
    """Name by which `adapt.methods` and arms select the method."""
    summary: str
    """Description in one line, for `python -m recipes list`."""
    about: About
    is_random_order: ClassVar[bool] = False
    """Whether the method is a uniformly random order, whose metrics are exact expectations."""
    is_adapter: ClassVar[bool] = False
    """Whether the method adapts a language model."""
    reads_language_model: ClassVar[bool] = False
    """Whether a language model answers, with an adapter or without one."""
    reads_candidates: ClassVar[bool] = False
    """Whether the method's input holds a row's candidates, unless `list_candidates` is false."""
    untold: ClassVar[frozenset[str]] = frozenset()
    """Settings that an arm's title leaves out."""
    version: int = 1
    """Raised when the same settings begin to give other results."""

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """All settings of an arm: the given ones, else the experiment's, else defaults.

        Args:
            experiment: The experiment, whose sections hold the settings that arms share.
            given: The arm's own settings.

        Returns:
            Values that JSON can hold. Together with `inputs` they determine the arm's result.

        Raises:
            ValueError: A setting is unknown, or a value is impossible.
        """
        if given:
            raise ValueError(f"method {self.name} has no setting {next(iter(given))!r}")
        return {}

    def ranks_listed(self, settings: Mapping[str, Any]) -> bool:
        """Whether an arm's input holds a row's candidates, so that it ranks no others."""
        return self.reads_candidates and bool(settings.get("list_candidates", True))

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """The training seeds of an arm."""
        return [0]

    def network(self, settings: Mapping[str, Any]) -> Network | None:
        """The network to train in the stage `recommender`; None unless the arm is a recommender."""
        return None

    def sources(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The recommenders whose vectors the arm reads: names of arms or of recommenders."""
        return ()

    def trials(self, arm: Arm) -> tuple[Arm, ...]:
        """The arms to train before this one, which chooses among them."""
        return ()

    def stage(self, run: Run, arm: Arm, seed: int) -> Stage | None:
        """The arm's training in the stage `adapt`; None if it trains nothing there."""
        return None

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Train and write the result into `folder`; an interrupted training is resumed.

        This is called only if `stage` is not None.
        """
        raise NotImplementedError

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse what training or evaluation would stumble over, before the first long stage.

        Args:
            run: The run, whose stage `prepare` is finished.
            arm: The arm.

        Raises:
            ValueError: Data, language model and settings do not fit; the message names the field.
        """

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """What `predict` reads: SHA-256 of stages' contents and of files, by name.

        Raises:
            FileNotFoundError: A stage has not been run yet; the message names the command.
            ValueError: A stage was run with other settings.
        """
        files = run.prepared.files
        names = ("examples.parquet", "candidates.parquet")
        return {name: files[name] for name in names if name in files}

    def scorer(self, run: Run, arm: Arm, seed: int) -> AbstractContextManager[Scorer]:
        """The block in which candidates are scored, whichever they are: frozen ones or all items.

        What is needed for all rows is loaded once, as the block is entered. The rows' targets must
        not be used.
        """
        raise NotImplementedError

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Predictions for the rows, whose targets a method must not use: by default, scores."""
        with self.scorer(run, arm, seed) as score:
            return Predictions(score(rows))


def trained_alone(arms: Iterable[Arm]) -> list[Arm]:
    """Arms with those that choose among trials replaced by these."""
    return [one for arm in arms for one in arm.method.trials(arm) or (arm,)]


def trained_name(arm: Arm, seed: int) -> str:
    """The name of a trained arm, of its folder and its predictions: `ilora-seed0`."""
    return f"{arm.name}-seed{seed}"


def arm_folder(run: Run, arm: Arm, seed: int) -> Path:
    """Folder of an arm that was trained with a seed."""
    adapt = run.experiment.adapt
    key = [run.prepare_key, run.llm_key, adapt.logging_steps, arm.method.name]
    key += [dict(arm.settings), seed]
    key += [measurement_settings(run.experiment)]
    key += [run.network_key(name) for name in arm.method.sources(arm.settings)]
    return run.place(f"adapt/{trained_name(arm, seed)}", key)
