"""The typed configuration of an experiment: one dataclass for each stage.

A shipped experiment is a YAML file in `recipes/experiments/` that fills these fields; every field
can be overridden on the command line (`--adapt.max_steps 100`). Fields are documented here, once.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from recipes.ranges import Count, Decay, Dropout, Number, Range, Rate, Seed

Precision = Literal["fp32", "bf16"]
Mistake = Literal["curriculum-restarts", "curriculum-reversed", "text-only-test"]


@dataclass(kw_only=True)
class SyntheticConfig:
    """The generated world of the `synthetic` dataset (`recipes/datasets/synthetic.py`)."""

    num_users: Annotated[int, Range(10)] = 1500
    """Number of users; they are split 8:1:1 into train, validation and test."""

    num_kinds: Annotated[int, Range(1, 4)] = 4
    """Number of kinds of users; each follows a preference rule that conflicts with the others'."""

    seed: Seed = 0
    """Random seed of the users' kinds and sequences. Items and rules are always the same."""


@dataclass(kw_only=True)
class CustomConfig:
    """How the dataset `custom` reads a file of interactions (`recipes/datasets/custom.py`)."""

    user: str | None = None
    """Column of the users; None guesses it by its name, and prints the guess. So do the others."""

    item: str | None = None
    """Column of the items."""

    time: str | None = None
    """Column of the times; `file order` where the rows are in order and the file has no times."""

    title: str | None = None
    """Column of the items' titles; without one, the items' ids are shown."""

    rating: str | None = None
    """Column of the ratings, read only if `prepare.min_rating` is given."""

    repeats: Literal["keep", "first", "last"] = "keep"
    """What stays where a user meets an item twice."""

    encoding: str = "utf-8"
    """Encoding of a CSV, TSV or JSON lines file."""

    split: str = "train"
    """Split to read of a dataset of the library `datasets`; several as `train+test`."""


@dataclass(kw_only=True)
class PrepareConfig:
    """Stage prepare: raw files -> interactions, items, examples and frozen candidates."""

    dataset: str = "synthetic"
    """Name of the dataset, as in `python -m recipes list`; `synthetic` needs no files."""

    protocol: str = "llara"
    """How interactions are ordered and split: `llara` as LLaRA's published files, for comparison
    with published figures; `chronological` by time, with users split 8:1:1; `leave-one-out` by
    time, where each user's last item is for testing and the one before for validation; `temporal`
    by time, where what follows one cut in time is for testing."""

    ties: Literal["stable", "item-id", "random", "drop"] | None = None
    """Order of a user's interactions of equal time: `stable` is that of the file, `item-id`
    ascending by the item's number in items.parquet, `random` drawn from `tie_seed`; `drop` is that
    of the file, and windows whose target has a tie are not evaluated. None takes the dataset's own:
    `random` for LastFM, else `stable`."""

    tie_seed: Seed = 0
    """Random seed of `ties: random`."""

    holdout: Annotated[float, Range(0, 0.5, open="both")] = 0.1
    """Share of the interactions in validation, and as many in test, under `temporal`."""

    min_rating: Annotated[float, Range(-math.inf)] | None = None
    """Interactions rated lower are left out; None takes the dataset's own (MovieLens: 3)."""

    core: Count | None = None
    """Users and items with fewer interactions are left out, again and again until none is; None
    takes the dataset's own filter."""

    titles: Literal["clean", "reference"] = "clean"
    """`reference` makes the titles as the reference implementation does, with its mistakes."""

    source: str | None = None
    """Folder with the official raw files, or one with such a folder in it; None downloads them,
    checks them and caches them. Of the dataset `custom`: a file, a folder, or a name that
    `datasets.load_dataset` knows."""

    train_share: Annotated[float, Range(0, 1, open="low")] = 1.0
    """Share of the train users to keep, in (0, 1]. The users kept at a smaller share are a subset
    of those kept at a larger one."""

    max_history: Count = 10
    """Maximum number of items in a history; the newest are kept, oldest first (paper: 10)."""

    num_candidates: Annotated[int, Range(2)] = 20
    """Size of a row's candidate set: the target and `num_candidates - 1` uniform negatives
    (paper: 20)."""

    candidate_seed: Seed = 1234
    """Random seed with which the candidates are drawn, once."""

    candidate_draws: Count = 1
    """Number of candidate sets drawn for a row of validation and test."""

    negatives: Literal["visible", "whole", "catalogue"] | None = None
    """Items that are never negatives of a row, besides its target: `visible` those of the history,
    `whole` all that the user ever meets, `catalogue` none. None stands for `visible`, or for
    `catalogue` where users meet items twice."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Settings that only the `synthetic` dataset reads."""

    custom: CustomConfig = field(default_factory=CustomConfig)
    """Settings that only the `custom` dataset reads."""


@dataclass(kw_only=True)
class RecommenderConfig:
    """Stage recommender: train windows -> user representations and item embeddings."""

    name: str = "sasrec"
    """The recommender whose vectors fill prompt slots and route adapters, unless an arm names
    another."""

    hidden_size: Count = 64
    """Width d of item embeddings and user representations (paper: 64)."""

    num_layers: Count = 2
    """Number of layers; in SASRec, of self-attention blocks."""

    num_heads: Count = 1
    """Attention heads of each block; only SASRec has any."""

    state_size: Count = 128
    """Width of GRU4Rec's hidden state."""

    horizontal_filters: Count = 16
    """Caser's horizontal filters of each height from 1 to `markov_order`."""

    vertical_filters: Count = 4
    """Caser's vertical filters."""

    markov_order: Count | None = None
    """How many of the newest items Caser reads (L in its paper: 5 on MovieLens); None: all of the
    history."""

    initial_std: Rate | None = None
    """Standard deviation of all embeddings at the start; None stands for 1 / sqrt(hidden_size),
    with which items have about unit length."""

    inner_size: Count | None = None
    """Width of SASRec's feed-forward networks; None stands for `hidden_size`, as in its paper."""

    dropout: Dropout = 0.2
    """Dropout probability."""

    loss: Literal["cross-entropy", "sampled-softmax", "bce"] = "cross-entropy"
    """Loss of a network: softmax cross entropy over the whole catalogue, over the target and
    `num_negatives` random items, or binary cross entropy against as many (paper: `bce`)."""

    num_negatives: Count | None = None
    """Random items for each target; None stands for 256 of `sampled-softmax` (or all others, where
    there are fewer) and 1 of `bce`."""

    positions: Literal["newest", "all", "newest-window"] = "newest"
    """`newest`: every train window trains the state at its newest item. `all`: each user's train
    sequence is cut into windows of `max_history` items, which train the states at all of them. It
    takes a fraction of the time. `newest-window`: of these windows, each user's newest alone, as in
    SASRec's paper."""

    encoder: str | None = None
    """Hugging Face name or local path of the encoder that the recommenders `text` and `morec` read
    titles with."""

    user_vectors: str | None = None
    """File of the recommender `file`: Parquet or safetensors with a vector for each user, or for
    each user and position."""

    item_vectors: str | None = None
    """File of the recommender `file`: Parquet or safetensors with a vector for each item."""

    learning_rate: Rate = 1e-3
    """Adam's learning rate (paper: 1e-3)."""

    weight_decay: Decay = 0.0
    """Adam's L2 coefficient (paper: grid 1e-3 .. 1e-7)."""

    batch_size: Count = 256
    """Windows in a batch (paper: 256)."""

    max_epochs: Count = 30
    """Maximum number of epochs."""

    patience: Count = 3
    """Training stops after this many epochs without a better validation NDCG@10 on the full
    catalogue."""

    min_history: Number = 3
    """Minimum history length of the windows used for training and validation (reference: 3)."""

    seed: Seed = 0
    """Random seed of initialisation, shuffling and dropout."""


@dataclass(kw_only=True)
class StandInConfig:
    """The small Llama that stands in for a real LLM; the run trains it itself."""

    titles: Literal["token", "subword"] | None = None
    """`token`: every title is one token, and the model knows what train users choose near each
    other and one after the other. `subword`: a title is several tokens, and the model knows the
    format of the prompts alone. None stands for `token`, or for `subword` where the dataset is made
    up."""

    hidden_size: Count = 128
    """Hidden width of the model."""

    num_layers: Count = 3
    """Number of decoder layers."""

    num_heads: Count = 4
    """Attention heads of each layer."""

    intermediate_size: Count = 256
    """Width of the MLP."""

    vocab_size: Annotated[int, Range(260)] = 8000
    """Maximum size of the BPE vocabulary of `titles: subword`; 256 bytes and 4 special tokens are
    always in it."""

    max_steps: Count = 2000
    """Optimiser steps on the prompt format, with random candidates as answers; of `titles: token`,
    every other one is on train windows instead."""

    batch_size: Count = 24
    """Prompts, or windows, in a batch."""

    learning_rate: Rate = 3e-3
    """Peak learning rate (AdamW with warm-up, then cosine decay)."""

    seed: Seed = 0
    """Random seed of initialisation, training prompts and shuffling."""


@dataclass(kw_only=True)
class AdapterSettings:
    """Training settings of every adapter. An arm may set its own values."""

    prompt_history: Count = 10
    """How many of the newest history items the prompt shows. The recommender reads all of them."""

    rank: Count = 16
    """Total rank: `r` in LoRA, `num_experts * r` in iLoRA (paper: 16)."""

    lora_alpha: Rate = 32
    """LoRA's alpha. Under a uniform gate iLoRA has the same scaling (reference: 32)."""

    lora_dropout: Dropout = 0.1
    """Dropout before the low-rank product (reference: 0.1)."""

    target_modules: Annotated[list[str], Range(1)] = field(
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
    """Names of the modules to adapt (reference: these seven of Llama). A name that the language
    model does not have is refused: other families name theirs otherwise."""

    last_layers: Count | None = None
    """Adapt only this many decoder layers, the last ones; None adapts all."""

    frozen_prefix: bool = False
    """Compute the hidden states below the first adapted layer once, keep them on disk, and train on
    them. Vectors of slots then enter at that layer, in place of their position's state. Needs
    `last_layers` and frozen candidates."""

    item_slots: bool = True
    """Whether each title in the prompt is followed by a slot for its item's vector."""

    list_candidates: bool = True
    """Whether the prompt lists the row's candidates. Only without them can an arm answer from the
    whole catalogue (`evaluate.candidates: catalogue`)."""

    train_windows: Count | None = None
    """Train on this many of the train windows, evenly spaced; None takes all."""

    max_steps: Count | None = 600
    """Number of optimiser steps; None where `epochs` says how long to train."""

    epochs: Rate | None = None
    """Passes over the train windows (paper: 5), in place of `max_steps`."""

    batch_size: Count = 32
    """Prompts in an optimiser step."""

    gradient_accumulation_steps: Count = 1
    """Micro-batches into which the prompts of an optimiser step are divided."""

    learning_rate: Rate = 1e-3
    """Peak learning rate of adapter and projector (5 % warm-up, then cosine decay)."""

    learning_rate_floor: Annotated[float, Range(0, 1, open="high")] = 0.0
    """Learning rate at the start of the warm-up and at the end of the decay, as a share of
    `learning_rate` (paper: 0.01)."""

    weight_decay: Decay = 1e-5
    """Weight decay of projector and gate (reference: 1e-5); the adapter has none."""

    curriculum: bool = True
    """LLaRA's curriculum: the batch of step t of T has the hybrid prompt with probability t/T,
    else the text-only one. False: every batch is hybrid."""

    min_history: Number = 3
    """Minimum history length of the train windows (reference: 3)."""

    redraw_candidates: bool = True
    """Draw new candidates for the train windows in each epoch after the first, from the seed of
    the frozen ones (reference: at every access). False keeps the frozen ones."""

    mistakes: list[Mistake] = field(default_factory=list)
    """Mistakes of the reference implementation to repeat: `curriculum-restarts`: the curriculum
    counts the steps of each epoch anew, so a batch is hybrid with probability 1 / epochs at most;
    `curriculum-reversed`: it goes from hybrid to text-only batches; `text-only-test`: evaluation
    leaves the slots of items unfilled."""


@dataclass(kw_only=True)
class GatedSettings(AdapterSettings):
    """Further training settings of an adapter with a gate."""

    num_experts: Count = 4
    """Number of iLoRA's experts K, each of rank `rank / num_experts` (paper: 4)."""

    gate_learning_rate_scale: Decay = 0.3
    """The gate's learning rate as a multiple of `learning_rate` (reference: 0.3)."""


@dataclass(kw_only=True)
class AdaptConfig(GatedSettings):
    """Stage adapt: (prompts, vectors, language model) -> an adapter for each arm and seed."""

    llm: str = "stand-in"
    """Hugging Face name or local path of a causal LM; `stand-in` for a small one that the run
    trains itself; `smollm2` for SmolLM2-135M-Instruct, which an installed package holds
    (`recipes/llm/smollm2.py`)."""

    chat_template: Literal["auto", "none"] = "auto"
    """`auto`: where the language model's tokenizer has a chat template, the prompt is the user's
    turn and the answer the assistant's; `none`: plain text."""

    methods: list[str] = field(default_factory=lambda: ["lora", "ilora"])
    """Methods to compare, each in its default settings; `arms` is the long form. All adapters are
    trained on equal terms: the same steps, data order and total rank."""

    precision: Precision = "fp32"
    """Precision of the language model's weights and of training. The adapter's weights are
    float32."""

    save_steps: Count = 200
    """Optimiser steps between checkpoints, from which an interrupted run resumes."""

    logging_steps: Count = 20
    """Optimiser steps between logged losses."""

    validate_at: list[Count] = field(default_factory=list)
    """Optimiser steps after which HitRatio@1 on the validation split is measured, for the report's
    curves. Nothing is chosen by it, unless `keep` is `best`."""

    validate_every: Rate | None = None
    """It is also measured each time that so many epochs are over; 0.5 is twice an epoch."""

    validate_rows: Annotated[int, Range(2)] = 1000
    """How many rows of validation are ranked each time, evenly spaced."""

    keep: Literal["last", "best"] = "last"
    """Which adapter a training leaves: that of its last step, or of the measured step with the
    highest HitRatio@1 on validation, the first of equals. The last step is then measured too."""

    patience: Count | None = None
    """With `keep: best`, training stops after this many measurements in a row without a higher
    HitRatio@1; None trains to the end."""

    report_to: list[str] = field(default_factory=list)
    """Experiment trackers of the Trainer, such as `tensorboard` or `wandb`."""

    stand_in: StandInConfig = field(default_factory=StandInConfig)
    """Settings of the stand-in, read only when `llm` is `stand-in`."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """Stage evaluate: (arms, frozen candidates) -> predictions, metrics and intervals."""

    split: Literal["val", "test"] = "test"
    """The split to evaluate on."""

    rows: Literal["last", "first", "all"] | None = None
    """`last`: each user's last window of the split, as in the paper; `first`: the first; `all`:
    every window, with intervals clustered by user. None takes `last` under `prepare.protocol:
    llara`, as the paper does, and `all` under the others. On LastFM, popularity says
    nothing about LLaRA's last rows (HitRatio@1 .049, the rarest candidate .173), while over all
    2,495 windows it has .242; so compare under `llara` with `all` too (docs/pipeline.md)."""

    candidates: Literal["sampled", "catalogue"] = "sampled"
    """What the target is ranked among: the row's frozen candidates, or all items."""

    mask: Literal["none", "history", "zero"] = "none"
    """What becomes of the user's earlier items in a ranking of all items: `none`: they are ranked
    as the others; `history`: they are left out; `zero`: they score 0, as in S3-Rec's code. The
    target is never masked."""

    average: Literal["rows", "users"] = "rows"
    """Whether a metric is the mean over rows, or over users of each user's mean."""

    min_history: Number = 3
    """Minimum history length of the evaluated rows (reference: 3)."""

    max_users: Annotated[int, Range(2)] | None = None
    """Evaluate only this many users, the first of the split; None evaluates all. The report says
    so."""

    batch_size: Count = 64
    """Prompts in a batch of generation; in ranking, about as many (prompt, candidate) pairs."""

    decoding: Literal["free", "candidates", "none"] = "free"
    """What a language model may write: `free`: anything; `candidates`: only tokens that lead to the
    title of one of the row's candidates, which may be all items, so that every answer is valid;
    `none`: nothing, so that candidates are ranked and an evaluation takes about half the time."""

    num_beams: Count = 1
    """Beams of a language model's generation; 1 is greedy. With several, HitRatio@K and NDCG@K of
    the beams are reported, and where all items are ranked, the beams are the ranking."""

    order_rows: Number = 50
    """On how many rows, evenly spaced, it is tried whether a language model's first choice changes
    when the prompt lists the candidates in another order; 0: on none."""

    order_permutations: Count = 1
    """In how many other orders each of these rows is ranked."""

    max_new_tokens: Count | None = None
    """Maximum number of generated tokens (reference: 64); None takes as many as the longest title
    has. A number under which the longest title does not fit is refused."""

    length_normalised: bool = False
    """Rank candidates by the mean log-probability of the title's tokens; False: by the sum."""

    ks: Annotated[list[Count], Range(1)] = field(default_factory=lambda: [1, 3, 5, 10])
    """Cut-offs K of HitRatio@K and NDCG@K."""

    bootstrap_samples: Annotated[int, Range(100)] = 2000
    """Number of bootstrap resamples of users behind each interval."""

    confidence: Annotated[float, Range(0, 1, open="both")] = 0.95
    """Confidence level of the intervals."""

    seed: Seed = 0
    """Random seed of the bootstrap."""


@dataclass(kw_only=True)
class Experiment:
    """Configuration of a whole run."""

    name: str = "experiment"
    """Title of the report."""

    out: str = "runs/experiment"
    """Folder of the run."""

    seeds: Annotated[int, Range(1, 2**32 - 1)] = 1
    """Number of training seeds: adapters are trained with seeds 0 .. seeds-1. All seeds share the
    earlier stages."""

    arms: list[dict[str, Any]] | None = None
    """The arms to compare, in place of `adapt.methods`. Each has a `method` and the settings in
    which it differs from this experiment, such as `{method: ilora, num_experts: 8}`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    recommender: RecommenderConfig = field(default_factory=RecommenderConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        """Settle which rows are evaluated, if the experiment does not say."""
        if self.evaluate.rows is None:
            rows = "last" if self.prepare.protocol == "llara" else "all"
            self.evaluate = replace(self.evaluate, rows=rows)
