"""Benchmark of SASRec's and GRU4Rec's training against RecBole's: speed, and HitRatio@10.

Both sides run in turn, in processes of their own, on the same sequences. A user's last item is held
out. Every other item except the first is the target of one training example, whose history is the
items before it. Both sides train with Adam on the softmax cross entropy over the whole catalogue,
computed at the newest state of each example. RecBole's GRU4Rec has no biases in its recurrence;
else the settings are equal. RecBole needs an environment of its own (`--peer_python`).
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch

from recipes.bench.measure import BenchConfig, Figure, compare, peak_bytes, publish
from recipes.data.padding import to_padded
from recipes.experiment import RecommenderConfig as NetworkConfig
from recipes.recommenders.fit import Windows, build_optimizer, train_epoch, window_ranks
from recipes.recommenders.gru4rec import GRU4Rec
from recipes.recommenders.ranking import target_ranks
from recipes.recommenders.recommender import SequenceRecommender
from recipes.recommenders.sasrec import SASRec
from recipes.recommenders.train import build_model

PEER = Path(__file__).parent / "peers" / "recbole_side.py"
MAKE_PEER = (
    "python -m venv PEER && PEER/bin/pip install torch==2.13.0 recbole==1.2.1 'numpy<2' 'pandas<3' "
    "'scipy<1.15', then --peer_python PEER/bin/python"
)
RESAMPLES = 2000
SCORINGS = 9
BOUNDS = (0.025, 0.975)
NETWORKS: dict[str, type[SequenceRecommender]] = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}
TARGETS = {"SASRec": 5.0, "GRU4Rec": 1.5}
"""How many times as many examples a second as RecBole."""


@dataclass(kw_only=True)
class RecommenderConfig(BenchConfig):
    """Sizes of the generated sequences, and settings of the networks on both sides."""

    rounds: int = 3
    peer_python: str | None = None
    """Python executable of an environment with RecBole; None times only this project's side."""
    num_users: int = 500
    """Number of users, each with one sequence."""
    num_items: int = 200
    """Number of items in the catalogue."""
    shortest: int = 10
    """Minimum number of items in a sequence, 3 or more."""
    longest: int = 60
    """Maximum number of items in a sequence."""
    epochs: int = 20
    """Training epochs, enough for both sides to converge. The first is a warm-up and not counted;
    the others are compared pairwise, in order."""
    max_history: int = 50
    """Maximum number of items in a history."""
    hidden_size: int = 64
    """Width of item embeddings and states."""
    num_layers: int = 2
    """Number of self-attention blocks of SASRec."""
    recurrent_layers: int = 1
    """Number of layers of GRU4Rec."""
    state_size: int = 128
    """Width of GRU4Rec's hidden state."""
    num_heads: int = 2
    """Attention heads of each block."""
    dropout: float = 0.2
    """Dropout probability."""
    learning_rate: float = 1e-3
    """Adam's learning rate on both sides (RecBole's default)."""
    batch_size: int = 256
    """Training examples in a batch."""
    catalogue: int = 50_000
    """Number of items in the catalogue on which the memory of scoring is measured."""
    scored_rows: int = 8192
    """Number of rows scored in that measurement; it is compared with a quarter of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 2:
            raise ValueError(f"epochs={self.epochs}: the first is a warm-up; use 2 or more")
        if not 3 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest={self.shortest}, longest={self.longest}: choose 3 <= shortest <= longest"
            )


def run(config: RecommenderConfig) -> list[Figure]:
    """Train both sides `rounds` times, network by network, and measure the memory of scoring."""
    scoring = scoring_memory(config)  # measured first, since an idle process may be paged out
    if config.peer_python is None:
        print(f"no --peer_python: this project's side alone. RecBole's environment: {MAKE_PEER}")
    figures, notes = [], {}
    for name in NETWORKS:
        found = trained(name, config)
        figures += compared(name, found)
        notes[name] = described(found)
    figures.append(scoring)
    notes["loss"] = "softmax cross-entropy over the catalogue, on both sides"
    notes["feed-forward width"] = "hidden_size, on both sides"
    publish("recommender", config, figures, notes)
    return figures


def trained(name: str, config: RecommenderConfig) -> dict[str, list[dict]]:
    """What each side's program prints of a network, round by round, in turn."""
    sides = {name: [sys.executable, "-m", __name__]}
    if config.peer_python is not None:
        sides["RecBole"] = [config.peer_python, str(PEER)]
    found: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as temporary:
        data, settings = Path(temporary) / "sequences.json", Path(temporary) / "settings.json"
        data.write_text(json.dumps(make_sequences(config)), encoding="utf-8")
        for turn in range(config.rounds):
            chosen = {field: getattr(config, field) for field in SHARED}
            chosen |= {"model": name, "seed": turn}
            if name == "GRU4Rec":
                chosen["num_layers"] = config.recurrent_layers
            order = list(sides)
            for side in order[turn % len(order) :] + order[: turn % len(order)]:
                settings.write_text(json.dumps(chosen), encoding="utf-8")
                found[side].append(in_a_process(sides[side], data, settings))
    examples = {run["examples"] for runs in found.values() for run in runs}
    if len(examples) > 1:
        raise ValueError(f"the sides do not train on the same examples: {sorted(examples)}")
    return found


def compared(name: str, found: dict[str, list[dict]]) -> list[Figure]:
    """Speed and quality of a network, where RecBole ran too."""
    if "RecBole" not in found:
        return []
    seconds = _seconds(found)
    what = f"{name}, examples a second"
    speed = compare(what, seconds, name, "RecBole", TARGETS[name], at_least=True)
    own, peer = (np.array([run["hits"] for run in found[side]]) for side in (name, "RecBole"))
    return [speed, hit_ratio(f"{name}, HitRatio@10", own, peer)]


def described(found: dict[str, list[dict]]) -> dict:
    """Notes about one network's trainings."""
    count = next(iter(found.values()))[0]["examples"]
    hits = {side: np.array([run["hits"] for run in runs]) for side, runs in found.items()}
    return {
        "examples of an epoch": count,
        "examples a second": {side: count / median(s) for side, s in _seconds(found).items()},
        "HitRatio@10": {side: interval(values) for side, values in hits.items()},
        "last loss": {side: runs[0]["losses"][-1] for side, runs in found.items()},
        "parameters": {side: runs[0]["parameters"] for side, runs in found.items()},
    }


def _seconds(found: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Seconds of each epoch without the first, by side."""
    return {
        side: [epoch for run in runs for epoch in run["seconds"][1:]]
        for side, runs in found.items()
    }


SHARED = (
    "threads",
    "num_items",
    "epochs",
    "max_history",
    "hidden_size",
    "state_size",
    "num_layers",
    "num_heads",
    "dropout",
    "learning_rate",
    "batch_size",
)


def make_sequences(config: RecommenderConfig) -> list[list[int]]:
    """Sequences in which an item's successors depend on the item and on the user's group.

    Each item has 5 likely successors in each of 4 groups. In one step of four, the next item is
    drawn by popularity (1 / rank) instead. Every item occurs.
    """
    random = np.random.default_rng(0)
    successors = random.integers(0, config.num_items, (4, config.num_items, 5))
    popularity = 1 / np.arange(1, config.num_items + 1)
    popularity /= popularity.sum()
    lengths = random.integers(config.shortest, config.longest + 1, config.num_users)
    sequences = []
    for user, length in enumerate(lengths.tolist()):
        jumps = random.choice(config.num_items, length, p=popularity)
        jumps[0] = user % config.num_items
        follows, which = random.random(length) < 0.75, random.integers(0, 5, length)
        items = [int(jumps[0])]
        for step in range(1, length):
            ruled = successors[user % 4, items[-1], which[step]]
            items.append(int(ruled if follows[step] else jumps[step]))
        sequences.append(items)
    return sequences


def in_a_process(command: list[str], data: Path, settings: Path) -> dict:
    """Run one side's program and return the JSON that it prints last."""
    done = subprocess.run(
        [*command, str(data), str(settings)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def interval(hits: np.ndarray) -> list[float]:
    """Mean, lower and upper bound of hits [rounds, users], with a 95 % bootstrap interval."""
    low, high = np.quantile(hits.mean(axis=0)[_resampled(hits.shape[1])].mean(axis=1), BOUNDS)
    return [float(hits.mean()), float(low), float(high)]


def hit_ratio(what: str, own: np.ndarray, peer: np.ndarray) -> Figure:
    """The ratio of two sides' HitRatio@10, with its 95 % bootstrap interval.

    The target is 1 minus half the interval's width, so that only a difference larger than noise
    misses it.
    """
    a, b = own.mean(axis=0), peer.mean(axis=0)
    rows = _resampled(len(a))
    low, high = np.quantile(a[rows].mean(axis=1) / np.maximum(b[rows].mean(axis=1), 1e-9), BOUNDS)
    ratio = float(a.mean() / max(b.mean(), 1e-9))
    target = round(1 - float(high - low) / 2, 3)
    return Figure(what, "RecBole", ratio, float(low), float(high), {}, target, True)


def _resampled(users: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, users, (RESAMPLES, users))


def scoring_memory(config: RecommenderConfig) -> Figure:
    """Ratio of the peak memory of ranking the full catalogue to that for a quarter of the rows."""
    random = torch.Generator().manual_seed(0)
    items = torch.randn(config.catalogue, config.hidden_size, generator=random)
    users = torch.randn(config.scored_rows, config.hidden_size, generator=random)
    targets = torch.randint(config.catalogue, (config.scored_rows,), generator=random)

    def peak(rows: int) -> int:
        return peak_bytes(lambda: target_ranks(users[:rows], items, targets[:rows]), "cpu") or 1

    few = config.scored_rows // 4
    peak(few)
    # Measured several times, since the system may page out a part of the process in between.
    ratios = [peak(config.scored_rows) / peak(few) for _ in range(SCORINGS)]
    low, _, high = quantiles(ratios, n=4)
    what = f"peak memory of scoring {config.scored_rows} rows x {config.catalogue} items"
    return Figure(what, "a quarter of the rows", median(ratios), low, high, {}, 1.05)


def own_side(data: Path, settings: dict) -> dict:
    """Train this project's side; returns what the peer's program prints."""
    torch.set_num_threads(settings["threads"])
    sequences = json.loads(data.read_text(encoding="utf-8"))
    names = {spec.name for spec in fields(NetworkConfig)} & settings.keys()
    chosen = NetworkConfig(**{name: settings[name] for name in names})
    width = settings["max_history"]
    train = [(items[:end], items[end]) for items in sequences for end in range(1, len(items) - 1)]
    test = [(items[:-1], items[-1]) for items in sequences]
    windows, held_out = _windows(train, width), _windows(test, width)
    model = build_model(NETWORKS[settings["model"]], chosen, settings["num_items"], width)
    optimizer = build_optimizer(model, chosen)
    seconds, losses = [], []
    for epoch in range(settings["epochs"]):
        start = time.perf_counter()
        losses.append(train_epoch(model, optimizer, windows, chosen, epoch, lambda: None))
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "losses": losses,
        "examples": len(windows.targets),
        "hits": (window_ranks(model, held_out) <= 10).int().tolist(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _windows(examples: list[tuple[list[int], int]], width: int) -> Windows:
    histories = to_padded([np.array(history[-width:]) for history, _ in examples], width)
    return Windows(torch.tensor(histories), torch.tensor([target for _, target in examples]))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    print(json.dumps(own_side(Path(sys.argv[1]), given)))
