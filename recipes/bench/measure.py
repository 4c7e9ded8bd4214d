"""Interleaved timings: every round runs every side once, so that noise affects all sides alike.

A figure is the median over rounds of the ratio within a round, with its quartiles. The seconds of
each side are written beside it, but mean little on a machine with other load.
"""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from recipes.artifacts import write_json
from recipes.cores import usable_cores
from recipes.records import installed_versions

Clock = Literal["wall", "cpu"]


@dataclass(kw_only=True)
class BenchConfig:
    """Settings of every benchmark."""

    rounds: int = 9
    """Number of interleaved rounds; each runs every side once."""
    threads: int = 2
    """Number of threads that torch uses."""
    device: str = "cpu"
    """Torch device on which the models run."""
    out: Path | None = None
    """Path of the JSON file; None stands for runs/bench/NAME.json."""

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise ValueError(f"rounds={self.rounds} is too few for a spread: use 3 or more")
        if self.threads < 1:
            raise ValueError(f"threads={self.threads} must be positive")


@dataclass(frozen=True)
class Figure:
    """One row of a benchmark's table: a ratio, and whether it meets its target."""

    what: str
    """What was measured."""
    against: str
    """What the ratio is relative to."""
    ratio: float
    """Median of the rounds' ratios."""
    low: float
    """Lower end of the spread, by default the lower quartile of the rounds' ratios."""
    high: float
    """Upper end of the spread, by default the upper quartile of the rounds' ratios."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Median time of each side in seconds; empty if no times were measured."""
    target: float | None = None
    """Bound that the ratio should meet; None if there is none."""
    at_least: bool = False
    """Whether the target is a lower bound; else it is an upper one."""
    by_quartile: bool = False
    """Whether the target is missed only when the whole spread lies beyond it; else the median
    decides."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is no target."""
        if self.target is None:
            return None
        if self.at_least:
            return (self.high if self.by_quartile else self.ratio) >= self.target
        return (self.low if self.by_quartile else self.ratio) <= self.target


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    clock: Clock = "wall",
) -> dict[str, list[float]]:
    """Seconds of each side in each round. The order of the sides rotates from round to round.

    Args:
        sides: Functions to time, by name. Each is first run once without timing.
        rounds: Number of rounds.
        device: Torch device; on CUDA a timing waits until the device has finished.
        clock: `cpu` counts CPU seconds of this process in place of time that passes.
    """
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    names = list(sides)
    for name in names:
        sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(_seconds(sides[name], device, now))
    finally:
        gc.enable()
    return times


def _seconds(run: Callable[[], object], device: str, now: Callable[[], float]) -> float:
    _wait(device)
    start = now()
    run()
    _wait(device)
    return now() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare(
    what: str,
    times: Mapping[str, list[float]],
    side: str,
    against: str,
    target: float | None = None,
    at_least: bool = False,
    by_quartile: bool = False,
) -> Figure:
    """The ratio of two sides' times, round by round.

    With `at_least` the ratio is inverted, so that it is the speed-up over `against`.
    """
    pairs = zip(times[side], times[against], strict=True)
    ratios = [b / a if at_least else a / b for a, b in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    median = statistics.median(ratios)
    return Figure(what, against, median, low, high, seconds, target, at_least, by_quartile)


def added(times: Mapping[str, list[float]], *sides: str) -> dict[str, list[float]]:
    """The times, with a further side `sum` that adds up some sides in each round."""
    together = [float(sum(parts)) for parts in zip(*(times[side] for side in sides), strict=True)]
    return {**times, "sum": together}


DIFFERENCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.15}
"""How far equal computations may lie apart, as a share of the largest output (1 if it is less)."""


def difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference between outputs of sides that should compute the same.

    Args:
        pairs: Outputs of two sides each, of one shape and dtype.

    Raises:
        ValueError: It exceeds what rounding in the outputs' dtype explains (`DIFFERENCES`).
    """
    worst = 0.0
    for one, other in pairs:
        apart = (one - other).abs().max().item()
        limit = DIFFERENCES[other.dtype] * max(1.0, other.abs().max().item())
        if not apart <= limit:
            raise ValueError(
                f"the sides do not compute the same: outputs differ by {apart}, and rounding in "
                f"{other.dtype} explains {limit:.2g}"
            )
        worst = max(worst, apart)
    return worst


def exact(what: str, against: str, ratio: float, target: float | None = None) -> Figure:
    """A figure whose ratio has no spread, such as a ratio of bytes."""
    return Figure(what, against, ratio, ratio, ratio, {}, target)


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """Peak memory while `run` runs: of the CUDA device, else of this process.

    Returns:
        Bytes; None if the system does not report them.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")  # Linux: forget the peak so far
    run()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peaks(sides: Mapping[str, Callable[[], object]], device: str) -> dict[str, int | None]:
    """`peak_bytes` of each side. On the CPU it includes all models that the process holds."""
    return {name: peak_bytes(run, device) for name, run in sides.items()}


def environment(config: BenchConfig) -> dict[str, object]:
    """Hardware and software with which the figures were measured."""
    cuda = config.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "machine": platform.machine(),
        "cores": usable_cores(),
        "threads": config.threads,
        "python": platform.python_version(),
        "versions": installed_versions(),
    }


def table(name: str, figures: list[Figure]) -> str:
    """The figures as a Markdown table, which is also readable in a terminal."""
    lines = [
        f"{name}: median over rounds [quartiles]",
        "",
        "| what | against | ratio | target | met |",
        "|---|---|---|---|---|",
    ]
    for f in figures:
        spread = "" if f.low == f.high else f" [{f.low:.3f}, {f.high:.3f}]"
        bound = "" if f.target is None else f"{'>=' if f.at_least else '<='} {f.target:g}"
        met = {None: "", True: "yes", False: "no"}[f.met]
        lines.append(f"| {f.what} | {f.against} | {f.ratio:.3f}{spread} | {bound} | {met} |")
    return "\n".join(lines)


def publish(
    name: str, config: BenchConfig, figures: list[Figure], notes: dict[str, object]
) -> Path:
    """Print the table and write the JSON.

    Args:
        name: Name of the benchmark.
        config: Settings of the benchmark, which are written with the figures.
        figures: Rows of the table.
        notes: Further results by name, such as checks, memory and sizes.

    Returns:
        Path of the JSON file.
    """
    print(table(name, figures))
    for key, value in notes.items():
        print(f"{key}: {value}")
    out = config.out or Path("runs") / "bench" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(figure) | {"met": figure.met} for figure in figures]
    found = {
        "benchmark": name,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "environment": environment(config),
        "figures": rows,
        "notes": notes,
    }
    write_json(out, found)
    return out
