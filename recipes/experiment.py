"""The typed configuration of an experiment: one dataclass for each stage.

A shipped experiment is a YAML file in `recipes/experiments/` that fills these fields; every field
can be overridden on the command line (`--adapt.max_steps 100`). Fields are documented here, once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]


@dataclass(kw_only=True)
class SyntheticConfig:
    """The world of the `synthetic` dataset (`recipes/datasets/synthetic.py`)."""

    num_users: int = 1500
    """Users, split 8:1:1 into train, validation and test."""

    num_kinds: int = 4
    """Kinds of users; each follows a preference rule that conflicts with the others'."""

    seed: int = 0
    """Seed of the world: the users' kinds and sequences. Items and rules are always the same."""


@dataclass(kw_only=True)
class PrepareConfig:
    """raw files -> interactions, items, examples and frozen candidates."""

    dataset: str = "synthetic"
    """Which dataset: `python -m recipes list` names them; `synthetic` needs no files."""

    protocol: str = "llara"
    """`llara` follows the published rebuild of LLaRA's files; `chronological` is the sound one."""

    source: str | None = None
    """Folder with the official raw files; None downloads them (checksum, cache)."""

    train_share: float = 1.0
    """Share of the train users that are kept, in (0, 1]. A smaller share keeps some of the users
    that a larger one keeps."""

    max_history: int = 10
    """Items of a history at most, oldest first (paper: 10)."""

    num_candidates: int = 20
    """Candidates of a row: the target and `num_candidates - 1` uniform negatives (paper: 20)."""

    candidate_seed: int = 1234
    """Seed of the frozen candidate draw."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Read only by the `synthetic` dataset."""


@dataclass(kw_only=True)
class RecommenderConfig:
    """train windows -> a recommender -> user representations and item embeddings."""

    name: str = "sasrec"
    """The recommender whose vectors fill slots and route, where an arm does not name another."""

    hidden_size: int = 64
    """Width d of item embeddings and user representations (paper: 64)."""

    num_layers: int = 2
    """Layers: SASRec's self-attention blocks."""

    num_heads: int = 1
    """Attention heads of a block."""

    dropout: float = 0.2
    """Dropout probability."""

    learning_rate: float = 1e-3
    """Adam's learning rate (paper: 1e-3)."""

    weight_decay: float = 0.0
    """Adam's L2 coefficient (paper: grid 1e-3 .. 1e-7)."""

    batch_size: int = 256
    """Windows of a batch (paper: 256)."""

    max_epochs: int = 30
    """Epochs at most."""

    patience: int = 3
    """Epochs without a better validation NDCG@10 (full catalogue) before training stops."""

    min_history: int = 3
    """Train windows with a shorter history are left out (reference: 3)."""

    seed: int = 0
    """Seed of initialisation, shuffling and dropout."""


@dataclass(kw_only=True)
class StandInConfig:
    """The small Llama that stands in for a real LLM, trained on the spot."""

    hidden_size: int = 128
    """Width of the model."""

    num_layers: int = 2
    """Decoder layers."""

    num_heads: int = 4
    """Attention heads."""

    intermediate_size: int = 256
    """Width of the MLP."""

    vocab_size: int = 8000
    """Entries of the BPE vocabulary, at most."""

    max_steps: int = 500
    """Optimiser steps of pretraining on format (answers are random candidates: no preference)."""

    batch_size: int = 32
    """Prompts of a batch."""

    learning_rate: float = 2e-3
    """Peak learning rate (AdamW, cosine)."""

    seed: int = 0
    """Seed of initialisation and shuffling."""


@dataclass(kw_only=True)
class AdapterSettings:
    """What every adapter is trained with. An arm may set its own values."""

    prompt_history: int = 10
    """Items of the history that the prompt shows: the newest ones. The recommender reads all."""

    rank: int = 16
    """Total rank: LoRA's r, and `num_experts * r` of iLoRA (paper: 16)."""

    lora_alpha: float = 32
    """LoRA's alpha; iLoRA gets the alpha that equals it under a uniform gate (reference: 32)."""

    lora_dropout: float = 0.1
    """Dropout before the low-rank product (reference: 0.1)."""

    target_modules: list[str] = field(
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    )
    """Adapted modules (reference: these seven)."""

    max_steps: int = 600
    """Optimiser steps."""

    batch_size: int = 32
    """Prompts of an optimiser step."""

    gradient_accumulation_steps: int = 1
    """Micro-batches of an optimiser step."""

    learning_rate: float = 1e-3
    """Peak learning rate of the adapter (warm-up 5 %, cosine)."""

    weight_decay: float = 1e-5
    """Weight decay of projector and gate (reference: 1e-5); the adapter has none."""

    curriculum: bool = True
    """LLaRA's curriculum: a batch of step t of T is hybrid with probability t/T, else text-only."""

    min_history: int = 3
    """Train windows with a shorter history are left out (reference: 3)."""


@dataclass(kw_only=True)
class GatedSettings(AdapterSettings):
    """What an adapter with a gate is trained with besides."""

    num_experts: int = 4
    """Experts K of iLoRA (paper: 4), each of rank `rank / num_experts`."""

    gate_learning_rate_scale: float = 0.3
    """The gate's learning rate as a multiple of `learning_rate` (reference: 0.3)."""


@dataclass(kw_only=True)
class AdaptConfig(GatedSettings):
    """(prompts, item embeddings, user representations, LLM) -> an adapter for each arm and seed."""

    llm: str = "stand-in"
    """A Hugging Face causal LM by name or path, or `stand-in`."""

    methods: list[str] = field(default_factory=lambda: ["lora", "ilora"])
    """Methods to compare, in their default settings: the short form of `arms`. All adapters are
    trained on equal terms: the same steps, data order and total rank."""

    precision: Precision = "fp32"
    """Arithmetic of training."""

    save_steps: int = 200
    """Steps between checkpoints, from which an interrupted run resumes."""

    logging_steps: int = 20
    """Steps between logged losses."""

    report_to: list[str] = field(default_factory=list)
    """Trackers of the Trainer, such as `tensorboard` or `wandb`."""

    stand_in: StandInConfig = field(default_factory=StandInConfig)
    """Read only when `llm` is `stand-in`."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """(adapters, frozen candidates) -> predictions, metrics, intervals."""

    split: Literal["val", "test"] = "test"
    """Evaluated split."""

    rows: Literal["last", "all"] = "last"
    """`last`: each user's last window (the paper); `all`: every window, clustered by user."""

    min_history: int = 3
    """Rows with a shorter history are left out (reference: 3)."""

    max_users: int | None = None
    """Evaluate only the first users of the split; None for all. Stated in the report."""

    batch_size: int = 64
    """Prompts of a generation batch."""

    max_new_tokens: int = 24
    """Tokens generated at most (reference: 64)."""

    length_normalised: bool = False
    """Rank candidates by the mean log-probability of a title's tokens; False: by their sum."""

    ks: list[int] = field(default_factory=lambda: [1, 3, 5, 10])
    """Cut-offs of HitRatio@K and NDCG@K."""

    bootstrap_samples: int = 2000
    """Resamples of users behind each interval."""

    confidence: float = 0.95
    """Level of the intervals."""

    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(kw_only=True)
class Experiment:
    """A whole run."""

    name: str = "experiment"
    """Shown in the report."""

    out: str = "runs/experiment"
    """The run's directory."""

    seeds: int = 1
    """Adapters are trained with seeds 0 .. seeds-1; everything before them is shared."""

    arms: list[dict[str, Any]] | None = None
    """What is compared, in place of `adapt.methods`: for each arm its `method` and the settings in
    which it differs from this file, such as `{method: ilora, num_experts: 8}`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    recommender: RecommenderConfig = field(default_factory=RecommenderConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
