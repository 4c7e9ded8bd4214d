"""A run: where its files are, and the objects that its stages share.

This is everything that methods read: prepared tables, recommenders, the language model and its
tokens. Each is loaded when it is first used, and only once.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipes.checksums import MEMORY, Checksums
from recipes.data.prepare import prepare, prepare_stage
from recipes.data.splits import SPLITS, SplitName
from recipes.data.tables import PreparedData
from recipes.datasets import DATASETS
from recipes.experiment import Experiment, RecommenderConfig
from recipes.llm.checkpoints import CHECKPOINTS
from recipes.llm.language_model import LanguageModel
from recipes.llm.loading import REMEDY, Outline, load_outline
from recipes.llm.smollm2 import SMOLLM2, make_smollm2, smollm2_folder
from recipes.llm.stand_in import STAND_IN, Form, StandIn, make_stand_in, stand_in_stage
from recipes.pretrained import content_of, explained
from recipes.prompting.store import PromptStore
from recipes.recommenders.normaliser import Normaliser
from recipes.recommenders.recommender import SequenceRecommender, VectorSource
from recipes.recommenders.source_stage import source_stage, write_vectors
from recipes.recommenders.train import recommender_stage, train_recommender
from recipes.recommenders.vectors import Vectors
from recipes.records import Record, Stage, canonical, read_record, required_record
from recipes.stages import run_stage

CANDIDATE_FIELDS = ("num_candidates", "candidate_seed", "candidate_draws", "negatives")
"""Settings of `prepare` that do not affect the windows."""


@dataclass(frozen=True)
class Network:
    """A recommender whose vectors a run trains, or has from a source."""

    recommender: type[SequenceRecommender] | type[VectorSource]
    config: RecommenderConfig
    seeds: tuple[int, ...] = ()
    """Seeds that it is trained with as an arm, besides its config's, with which it is always
    trained: that one's vectors fill slots and route adapters."""

    @property
    def source(self) -> VectorSource | None:
        """The source of the vectors; None if they are trained."""
        recommender = self.recommender
        return recommender(self.config) if issubclass(recommender, VectorSource) else None

    @property
    def is_common(self) -> bool:
        """Whether the vectors mean the same in every dataset."""
        return issubclass(self.recommender, VectorSource) and self.recommender.is_common

    def open(self) -> None:
        """Look at the files that vectors or a network come from.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It cannot be used.
        """
        if issubclass(self.recommender, VectorSource):
            assert self.width  # read off the source's files
        else:
            self.recommender.open(self.config)

    @property
    def width(self) -> int:
        """Dimension of the vectors (ValueError: a source cannot be read)."""
        source = self.source
        return self.config.hidden_size if source is None else source.width


def seeded_name(name: str, seed: int) -> str:
    """The folder of a recommender with another seed than its own: `sasrec-seed1`."""
    return f"{name}-seed{seed}"


def title_form(experiment: Experiment) -> Form:
    """What a token of the experiment's stand-in is; without a choice, what suits its dataset."""
    chosen = experiment.adapt.stand_in.titles
    if chosen is not None:
        return chosen
    return "subword" if DATASETS[experiment.prepare.dataset].is_made_up else "token"


class Run:
    """The files and shared objects of one experiment.

    Args:
        experiment: The configuration of the run.
        networks: Recommenders to train, by the name under which methods ask for their vectors.
        shared: Folder for stages that several runs share; None keeps all stages in
            `experiment.out`.
    """

    def __init__(
        self, experiment: Experiment, networks: Mapping[str, Network], shared: Path | None = None
    ) -> None:
        self.experiment = experiment
        self.networks = networks
        self.folder = Path(experiment.out)
        self.shared = shared
        self.checksums = Checksums((shared or self.folder) / MEMORY)
        self.is_checked = False
        """Whether `preflight` has looked at the arms."""
        self._vectors: dict[str, Vectors] = {}
        self.elsewhere: dict[str, Run] = {}
        """Runs on other data, which train adapters that this one evaluates; by `trained_on`."""
        self._lender: Run | None = None

    def trains_elsewhere(self, place: str, other: "Run") -> None:
        """Have adapters trained in a run on other data, which borrows this run's language model."""
        self.elsewhere[place], other._lender = other, self

    @property
    def is_evaluated(self) -> bool:
        """Whether predictions are made for these data, and adapters not only trained on them."""
        return self._lender is None

    def place(self, name: str, key: Any) -> Path:
        """The folder of a stage.

        Args:
            name: Name of the folder, relative to the run's.
            key: All settings that the stage depends on, its own and those of earlier stages. In a
                shared folder its checksum becomes part of the name, so that stages of one name and
                different settings lie side by side.
        """
        if self.shared is None:
            return self.folder / name
        digest = hashlib.sha256(json.dumps(canonical(key), sort_keys=True).encode()).hexdigest()
        return self.shared / f"{name}-{digest[:12]}"

    # ---------------------------------------------------------------- prepared data

    @property
    def prepare_key(self) -> dict[str, Any]:
        """Settings that determine the tables."""
        return asdict(self.experiment.prepare)

    @property
    def windows_key(self) -> dict[str, Any]:
        """Settings that determine the windows: those of the tables, without the candidates'."""
        key = self.prepare_key
        return {name: value for name, value in key.items() if name not in CANDIDATE_FIELDS}

    @property
    def prepare_folder(self) -> Path:
        """Folder of the tables."""
        return self.place("prepare", self.prepare_key)

    def prepare(self) -> Record:
        """Run the stage `prepare`."""
        return prepare(self.experiment.prepare, self.prepare_folder, self.checksums)

    @cached_property
    def prepared(self) -> Record:
        """The record of the stage `prepare`.

        Raises:
            FileNotFoundError: The stage has not been run.
            ValueError: The stage was run with other settings.
        """
        # The recorded checksums are taken over, since the raw files may be gone by now. Only the
        # stage `prepare` itself checks whether they have changed.
        checksums = read_record(self.prepare_folder, "prepare").inputs
        stage = prepare_stage(self.experiment.prepare, checksums)
        return required_record(stage, self.prepare_folder, "prepare")

    @cached_property
    def data(self) -> PreparedData:
        """The prepared tables as arrays."""
        assert self.prepared
        return PreparedData.load(self.prepare_folder)

    # ---------------------------------------------------------------- recommenders

    @property
    def trainings(self) -> list[tuple[str, int]]:
        """Name and seed of each recommender to train: all with their first seed, then the next.

        Where nothing is evaluated, only the vectors are read, which are those of the first seed.
        """
        seeds = {
            name: list(dict.fromkeys([network.config.seed, *network.seeds * self.is_evaluated]))
            for name, network in self.networks.items()
        }
        turns = max(map(len, seeds.values()), default=0)
        return [(name, own[k]) for k in range(turns) for name, own in seeds.items() if k < len(own)]

    def network_config(self, name: str, seed: int | None = None) -> RecommenderConfig:
        """A recommender's settings; with no `seed`, here and below, the seed is the config's."""
        config = self.networks[name].config
        return config if seed is None else replace(config, seed=seed)

    def network_stage(self, name: str, seed: int | None = None) -> Stage:
        """The training of a recommender as a stage."""
        recommender, config = self.networks[name].recommender, self.network_config(name, seed)
        if issubclass(recommender, VectorSource):
            return source_stage(recommender(config), self.prepared.files, self.checksums)
        own = recommender.inputs(config, self.checksums)
        return recommender_stage(recommender, config, self.prepared.files, own)

    def network_folder(self, name: str, seed: int | None = None) -> Path:
        """Folder of a trained recommender, such as `sasrec`; with another seed, `sasrec-seed1`."""
        own = self.network_config(name, seed).seed
        named = name if own == self.networks[name].config.seed else seeded_name(name, own)
        return self.place(f"recommenders/{named}", self.network_key(name, seed))

    def network_key(self, name: str, seed: int | None = None) -> list[Any]:
        """Settings that determine a trained recommender."""
        return [self.windows_key, name, asdict(self.network_config(name, seed))]

    def train_network(self, name: str, seed: int | None = None) -> Record:
        """Train a recommender, unless it has been trained already."""
        recommender, config = self.networks[name].recommender, self.network_config(name, seed)
        stage = self.network_stage(name, seed)

        def work(place: Path) -> None:
            if issubclass(recommender, VectorSource):
                write_vectors(recommender(config), self.data, self.prepare_folder, place)
            else:
                train_recommender(recommender, config, self.data, place, stage.fingerprint)

        return run_stage(stage, self.network_folder(name, seed), work)

    def network_record(self, name: str, seed: int | None = None) -> Record:
        """The record of a trained recommender.

        Raises:
            FileNotFoundError: The recommender has not been trained.
            ValueError: The recommender was trained with other settings or on other data.
        """
        stage, folder = self.network_stage(name, seed), self.network_folder(name, seed)
        return required_record(stage, folder, "recommender")

    def vectors(self, name: str, normaliser: Normaliser | None = None) -> Vectors:
        """Vectors of a trained recommender, standardised by their own statistics or other ones."""
        if normaliser is not None:
            return self._standardised(name, normaliser)
        if name not in self._vectors:
            self._vectors[name] = self._standardised(name, None)
        return self._vectors[name]

    def _standardised(self, name: str, normaliser: Normaliser | None) -> Vectors:
        self.network_record(name)
        source = self.networks[name].source
        means_nothing = source is None or source.reads_history
        empty: dict[SplitName, np.ndarray] = {
            split: (self.data.split(split).history_lengths == 0) & means_nothing for split in SPLITS
        }
        return Vectors.load(self.network_folder(name), empty, normaliser)

    # ---------------------------------------------------------------- language model

    @property
    def has_stand_in(self) -> bool:
        """Whether the language model is the stand-in, which the run trains itself."""
        return self.experiment.adapt.llm == STAND_IN

    @property
    def stand_in_form(self) -> Form:
        """What a token of the stand-in is."""
        return title_form(self.experiment)

    @property
    def has_smollm2(self) -> bool:
        """Whether the language model is SmolLM2, which an installed package holds."""
        return self.experiment.adapt.llm == SMOLLM2

    @cached_property
    def _smollm2(self) -> Record:
        return make_smollm2()

    @cached_property
    def _stand_in(self) -> Stage:
        adapt, prepare, form = self.experiment.adapt, self.experiment.prepare, self.stand_in_form
        return stand_in_stage(
            adapt.stand_in,
            form,
            prompt_history=adapt.prompt_history,
            num_candidates=prepare.num_candidates,
            titles=self.prepared.files["items.parquet"],
            train=self.data.split("train") if form == "token" else None,
        )

    @cached_property
    def _stand_in_plan(self) -> StandIn:
        return StandIn(
            config=self.experiment.adapt.stand_in,
            form=self.stand_in_form,
            prompt_history=self.experiment.adapt.prompt_history,
            num_candidates=self.experiment.prepare.num_candidates,
            titles=self.data.titles,
            train=self.data.split("train") if self.stand_in_form == "token" else None,
        )

    @property
    def stand_in_folder(self) -> Path:
        """Folder of the stand-in."""
        adapt, prepare = self.experiment.adapt, self.experiment.prepare
        sizes = [asdict(adapt.stand_in), adapt.prompt_history, prepare.num_candidates]
        return self.place(f"adapt/{STAND_IN}", [self.windows_key, *sizes])

    def make_stand_in(self) -> None:
        """Train the stand-in, if the run uses one and it has not been trained already."""
        if not self.has_stand_in:
            return
        adapt = self.experiment.adapt

        def work(place: Path) -> None:
            make_stand_in(
                self._stand_in_plan,
                folder=place,
                checkpoints=place / CHECKPOINTS,
                logging_steps=adapt.logging_steps,
                save_steps=adapt.save_steps,
            )

        run_stage(self._stand_in, self.stand_in_folder, work)

    @property
    def llm_path(self) -> str:
        """Hugging Face name or local path of the language model; SmolLM2 is prepared if need be."""
        if self.has_smollm2:
            assert self._smollm2
            return str(smollm2_folder())
        return str(self.stand_in_folder) if self.has_stand_in else self.experiment.adapt.llm

    @cached_property
    def llm_content(self) -> str:
        """Identifies the language model's content, whatever its name.

        Returns:
            The checksum of the weights of the stand-in or of SmolLM2, the commit of a hub
            repository, or the checksum of a folder.

        Raises:
            FileNotFoundError: There is no such model.
        """
        if self._lender is not None:
            return self._lender.llm_content
        if self.has_stand_in:
            return required_record(self._stand_in, self.stand_in_folder, "adapt").content
        if self.has_smollm2:
            return self._smollm2.content
        with explained("adapt.llm", self.llm_path, REMEDY):
            return content_of(self.llm_path, self.checksums)

    @cached_property
    def llm(self) -> LanguageModel:
        """The frozen language model, loaded once for all adapters and their evaluation.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: It cannot be used, or its folder has changed since it was first read.
        """
        if self._lender is not None:
            return self._lender.llm
        assert self.llm_content  # first, so that records name what is loaded now
        return LanguageModel(self.llm_path, self.experiment.adapt.precision, self._check_llm)

    def _check_llm(self) -> None:
        path = Path(self.llm_path)
        own = not (self.has_stand_in or self.has_smollm2) and path.is_dir()
        if own and self.checksums.of_folder(path) != self.llm_content:
            raise ValueError(
                f"adapt.llm={self.llm_path!r} has changed while it was in use: run the command "
                "again, once nothing writes into that folder"
            )

    def release_llm(self) -> bool:
        """Free the language model, which is loaded again when it is used; whether there was one."""
        for other in self.elsewhere.values():
            other.release_llm()
        return vars(self).pop("llm", None) is not None

    @cached_property
    def outline(self) -> Outline:
        """The language model without weights, known before it is loaded or trained."""
        if not self.has_stand_in:
            return load_outline(self.llm_path)
        return self._stand_in_plan.outline()

    @cached_property
    def prompts(self) -> PromptStore:
        """Prompts and answers under the language model's tokenizer."""
        return self._store(self.llm.tokenizer)

    @cached_property
    def outlined_prompts(self) -> PromptStore:
        """The same before the language model is loaded or trained."""
        return self._store(self.outline.tokenizer)

    def _store(self, tokenizer: PreTrainedTokenizerBase) -> PromptStore:
        chat = self.experiment.adapt.chat_template
        return PromptStore(tokenizer, self.data, self.token_folder, chat)

    @property
    def token_folder(self) -> Path:
        """Folder of token ids, see `tokenised`."""
        return (self.shared or self.folder) / "tokens"

    @property
    def state_folder(self) -> Path:
        """Folder of hidden states of the language model, see `kept_states`."""
        return (self.shared or self.folder) / "states" / self.llm_content[:16]

    @property
    def llm_key(self) -> list[Any]:
        """Settings that determine the language model."""
        adapt = self.experiment.adapt
        model = self.stand_in_folder.name if self.has_stand_in else adapt.llm
        return [model, adapt.precision, adapt.chat_template]
