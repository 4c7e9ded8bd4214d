"""Makes every recommender a method of the same name, without a language model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from recipes.data.tables import joined
from recipes.experiment import Experiment, RecommenderConfig
from recipes.methods.method import Arm, Method
from recipes.methods.settings import checked, refuse_unknown
from recipes.ranges import LAST_SEED
from recipes.recommenders.recommender import (
    LOCATED,
    AnyRecommender,
    Counter,
    SequenceRecommender,
    VectorSource,
)
from recipes.recommenders.representations import Representations
from recipes.recommenders.train import check_config
from recipes.run import Network, Run
from recipes.scoring.arrays import Floats
from recipes.scoring.predictions import Scorer
from recipes.scoring.rows import EvaluatedRows


class CounterMethod(Method):
    """A counter as a method. It has no training stage, since it counts when it predicts."""

    def __init__(self, counter: type[Counter]) -> None:
        self.counter = counter
        self.name, self.summary, self.about = counter.name, counter.summary, counter.about
        self.version = counter.version

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arm's one setting, `counted`: the splits whose interactions count, by default train.

        Under protocols by time, whoever ranks for the test has seen validation too.
        """
        refuse_unknown(f"method {self.name}", given, ("counted",))
        counted = given.get("counted", ["train"])
        if counted not in (["train"], ["train", "val"]):
            raise ValueError(
                f"method {self.name}: counted={counted!r} must be [train] or [train, val]"
            )
        if "val" in counted and experiment.evaluate.split == "val":
            raise ValueError(
                f"method {self.name}: counted={counted!r} holds the targets of "
                "evaluate.split='val': leave val out"
            )
        return {"counted": counted}

    @contextmanager
    def scorer(self, run: Run, arm: Arm, seed: int) -> Iterator[Scorer]:
        """The counter's scores."""
        counted = [run.data.split(name) for name in arm.settings["counted"]]
        counter = self.counter(joined(counted), run.data.num_items)
        yield lambda rows: counter.scores(
            run.data.split(rows.split).histories[rows.rows], rows.candidates
        )


class NetworkMethod(Method):
    """A network as a method, trained in the stage `recommender`. Arms may set all its settings."""

    def __init__(self, recommender: type[SequenceRecommender]) -> None:
        self.recommender = recommender
        self.name, self.summary = recommender.name, recommender.summary
        self.about = recommender.about

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The section `recommender`, with the arm's own values in it, as far as they are read."""
        unread = {"name", *LOCATED} - set(self.recommender.located)
        names = {spec.name for spec in fields(RecommenderConfig)} - unread
        values = {name: getattr(experiment.recommender, name) for name in names}
        config = checked(RecommenderConfig, f"method {self.name}", values, given, names)
        check_config(self.recommender, config)
        last = config.seed + experiment.seeds - 1
        if last > LAST_SEED:
            raise ValueError(
                f"recommender.seed={config.seed} with seeds={experiment.seeds} ends at {last}, but "
                f"the largest seed is {LAST_SEED}: choose a smaller one"
            )
        return {**asdict(config), "name": self.name}

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """The recommender's own seed and those that follow, `experiment.seeds` in all."""
        return [settings["seed"] + turn for turn in range(experiment.seeds)]

    def network(self, settings: Mapping[str, Any]) -> Network:
        """The network itself, with the arm's settings."""
        return Network(self.recommender, RecommenderConfig(**settings))

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows and candidates, and the trained network."""
        record = run.network_record(arm.name, seed)
        return super().inputs(run, arm, seed) | {"recommender": record.content}

    @contextmanager
    def scorer(self, run: Run, arm: Arm, seed: int) -> Iterator[Scorer]:
        """The network's scores: dot products of user representation and item embedding."""
        vectors = Representations.load(run.network_folder(arm.name, seed))

        def scores(rows: EvaluatedRows) -> Floats:
            if rows.whole_catalogue:
                return vectors.catalogue_scores(rows.split, rows.rows).numpy()
            return vectors.scores(rows.split, rows.rows, rows.candidates).double().numpy()

        yield scores


class SourceMethod(NetworkMethod):
    """A source of vectors as a method: nothing is trained, so neither loss nor seed matters."""

    def __init__(self, source: type[VectorSource]) -> None:
        self.source = source
        self.name, self.summary, self.about = source.name, source.summary, source.about

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of the section `recommender` that the source reads, or the arm's own."""
        names = self.source.settings
        values = {name: getattr(experiment.recommender, name) for name in names}
        config = checked(RecommenderConfig, f"method {self.name}", values, given, names)
        self.source(config).check()
        return {**{name: getattr(config, name) for name in names}, "name": self.name}

    def seeds(self, experiment: Experiment, settings: Mapping[str, Any]) -> list[int]:
        """One, which stands for none."""
        return [0]

    def network(self, settings: Mapping[str, Any]) -> Network:
        """The source, with the arm's settings."""
        return Network(self.source, RecommenderConfig(**settings))


def as_methods(recommenders: Iterable[AnyRecommender]) -> list[Method]:
    """One method for each recommender."""
    return [_as_method(one) for one in recommenders]


def _as_method(recommender: AnyRecommender) -> Method:
    if issubclass(recommender, Counter):
        return CounterMethod(recommender)
    if issubclass(recommender, VectorSource):
        return SourceMethod(recommender)
    return NetworkMethod(recommender)
