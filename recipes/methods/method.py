"""What a method is: it introduces itself, says what it reads, trains, and predicts.

A method that trains nothing, or never touches a language model, overrides `configure` and `predict`
alone (`co_occurrence.py`); an adapter of a language model starts from `AdapterMethod`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from recipes.about import About
from recipes.experiment import EvaluateConfig, Experiment
from recipes.records import Stage
from recipes.run import Network, Run
from recipes.scoring.predictions import Predictions
from recipes.scoring.rows import EvaluatedRows


@dataclass(frozen=True)
class Arm:
    """A method in one setting: a row of the report."""

    name: str
    """Its folder and its column: `ilora`, `ilora,num_experts=8`."""
    method: "Method"
    given: Mapping[str, Any]
    """The settings in which the arm differs from its method's defaults, as the user wrote them."""
    settings: Mapping[str, Any]
    """All settings that determine the arm's result, and no others."""

    @property
    def title(self) -> str:
        """In tables and plots: `iLoRA, num_experts 8`."""
        own = ", ".join(f"{key} {shown(value)}" for key, value in self.given.items())
        return f"{self.method.about.title}, {own}" if own else self.method.about.title


def shown(value: Any) -> str:
    """A setting's value in a name."""
    if isinstance(value, (list, tuple)):
        return "+".join(shown(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class Method(ABC):
    """One method. Subclasses are listed in `recipes/methods/__init__.py`."""

    name: str
    """In `adapt.methods` and arms."""
    summary: str
    """One line for `python -m recipes list`."""
    about: About
    is_random_order: ClassVar[bool] = False
    """Whether it is a uniformly random order, whose expectation needs no predictions."""
    is_adapter: ClassVar[bool] = False
    """Whether it adapts a language model."""
    version: ClassVar[int] = 1
    """Bumped when the same settings give other results."""

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """All settings of an arm: the given ones, else the experiment's, else defaults.

        Args:
            experiment: Its sections hold the settings that arms share.
            given: The arm's own settings.

        Returns:
            Plain values, which determine the arm's result together with what it reads.

        Raises:
            ValueError: An unknown setting, or an impossible value.
        """
        if given:
            raise ValueError(f"method {self.name} has no setting {next(iter(given))!r}")
        return {}

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """The training seeds of an arm."""
        return [0]

    def network(self, settings: Mapping[str, Any]) -> Network | None:
        """The recommender that an arm is, if it is one: it is trained before any adapter."""
        return None

    def sources(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The recommenders whose vectors an arm reads: names of arms, or of recommenders."""
        return ()

    def stage(self, run: Run, arm: Arm, seed: int) -> Stage | None:
        """What determines the trained arm, or None if it trains nothing of its own."""
        return None

    def train(self, run: Run, arm: Arm, seed: int, folder: Path) -> None:
        """Train, and write the result into `folder`; resume what was interrupted.

        Called where `stage` says that there is something to train.
        """
        raise NotImplementedError

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """What `predict` reads: fingerprints of stages and checksums of files, by name.

        Raises:
            FileNotFoundError: Something has not been made yet; the message names the command.
            ValueError: It was made with other settings.
        """
        files = run.prepared.files
        return {name: files[name] for name in ("examples.parquet", "candidates.parquet")}

    @abstractmethod
    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Predict rows, whose targets a method must not look at."""


def arm_folder(run: Run, arm: Arm, seed: int) -> Path:
    """Where a trained arm is."""
    key = [run.prepare_key, run.llm_key, dict(arm.settings), seed]
    key += [run.network_key(name) for name in arm.method.sources(arm.settings)]
    return run.place(f"adapt/{arm.name}-seed{seed}", key)
