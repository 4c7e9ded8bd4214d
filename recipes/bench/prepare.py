"""Benchmark of the stage `prepare` on millions of interactions: time, memory, linearity of time.

Interactions are generated and written to a temporary folder in HetRec-LastFM's format. All (user,
item) pairs are different, and items follow Zipf's law. Then the whole stage runs on them in a
process of its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import pyarrow as pa
from pyarrow import csv

from recipes.artifacts import read_json
from recipes.bench.measure import BenchConfig, Figure, peak_bytes, publish
from recipes.checksums import MEMORY, Checksums
from recipes.data.prepare import prepare
from recipes.datasets import lastfm
from recipes.experiment import PrepareConfig

ROWS_OF_USER = 125
"""Interactions of a user, on average."""
ROWS_OF_ITEM = 500
"""Interactions of an item, on average, if there are more items than `FEWEST_ITEMS`."""
FEWEST_ITEMS = 500
SECONDS = 120
"""Target for the time at the largest size, in seconds."""
GIB = 6
"""Target for the peak memory at the largest size, in GiB."""
USERS_AT_ONCE = 4096
"""Number of users whose interactions are drawn at once."""


@dataclass(kw_only=True)
class PrepareBenchConfig(BenchConfig):
    """Settings of the generated interactions; users and items grow with their number."""

    rows: int = 25_000_000
    """Number of interactions at the larger size; the smaller size is a quarter of it."""
    rounds: int = 3
    protocols: list[str] = field(default_factory=lambda: list(lastfm.LastFM.protocols))
    """Protocols of the dataset `lastfm`; all but `llara` also sort by time, and draw the order of
    equal times."""
    shuffled: bool = False
    """Write the rows in random order; the official file is sorted by user and item."""
    folder: str | None = None
    """Parent folder of the temporary files; None stands for the system's. The files take about 120
    bytes per interaction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 40_000:
            raise ValueError(f"rows={self.rows} is too few to measure: use 40,000 or more")
        known = lastfm.LastFM.protocols
        for protocol in self.protocols:
            if protocol not in known:
                raise ValueError(f"protocols: {protocol!r}: choose from {', '.join(known)}")
        if self.shuffled and "llara" in self.protocols:
            raise ValueError("shuffled=true: protocol llara reads sorted rows alone; leave it out")


def run(config: PrepareBenchConfig) -> list[Figure]:
    """Measure both sizes under every protocol in turn, `rounds` times."""
    sizes = (config.rows // 4, config.rows)
    taken: dict[tuple[str, int], list[Mapping[str, float]]] = {
        (protocol, size): [] for protocol in config.protocols for size in sizes
    }
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folders = {size: Path(temporary) / str(size) for size in sizes}
        for size, folder in folders.items():
            write_raw(folder, size, config.shuffled)
        for _ in range(config.rounds):
            for (protocol, size), found in taken.items():
                found.append(in_a_process_of_its_own(config, folders[size], protocol))
                if found[-1]["interactions"] < 0.99 * size:  # rare items are left out
                    raise ValueError(f"{found[-1]['interactions']} of {size} came through")
    figures = [
        figure
        for protocol in config.protocols
        for figure in _figures(protocol, sizes, [taken[protocol, size] for size in sizes])
    ]
    notes: dict[str, object] = {
        f"{protocol}, {size:,} interactions": {
            "GiB": median(one["bytes"] for one in found) / 2**30,
            "CPU seconds": median(one["cpu_seconds"] for one in found),
        }
        for (protocol, size), found in taken.items()
    }
    publish("prepare", config, figures, notes)
    return figures


def _figures(
    protocol: str, sizes: tuple[int, int], taken: list[list[Mapping[str, float]]]
) -> list[Figure]:
    """Time, memory and linearity of a protocol, from the readings at both sizes."""
    small, large = sizes
    few, many = taken
    seconds = {
        f"{size:,}": median(one["seconds"] for one in found)
        for size, found in zip(sizes, taken, strict=True)
    }
    pairs = zip(many, few, strict=True)
    name = f"{large:,} interactions, {protocol}"
    figures = [
        _figure(f"prepare {name}", f"{SECONDS} s", [one["seconds"] / SECONDS for one in many], 1.0),
        _figure(
            f"peak memory of {name}",
            f"{GIB} GiB",
            [one["bytes"] / 2**30 / GIB for one in many],
            1.0,
        ),
        _figure(
            f"time of an interaction, {protocol}",
            f"of {small:,}",
            [(a["seconds"] / large) / (b["seconds"] / small) for a, b in pairs],
            1.2,
        ),
    ]
    return [replace(figure, seconds=seconds) for figure in figures]


def _figure(what: str, against: str, ratios: list[float], target: float) -> Figure:
    low, _, high = quantiles(ratios, n=4)
    return Figure(what, against, median(ratios), low, high, {}, target)


def write_raw(folder: Path, rows: int, shuffled: bool = False, seed: int = 0) -> None:
    """Write `rows` interactions as `user_taggedartists.dat` and `artists.dat`.

    Args:
        folder: Folder of the files; created.
        rows: Number of interactions, each a different (user, item) pair.
        shuffled: Write the rows in random order instead of sorted by user and item.
        seed: Random seed of pairs, order and dates.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    items = max(rows // ROWS_OF_ITEM, FEWEST_ITEMS)
    pairs = _pairs(rows, items, random)
    if shuffled:
        random.shuffle(pairs)
    users, artists = np.divmod(pairs, items)
    columns = {"userID": users + 1, "artistID": artists + 1, "tagID": np.full(rows, 13, np.int16)}
    # A user's dates are within 400 days from a first day that depends on the user.
    days = (users * 7919 % 1000 + random.integers(0, 400, rows)).astype("timedelta64[D]")
    dates = np.datetime64("2005-08-01") + days
    months = dates.astype("datetime64[M]")
    columns["day"] = ((dates - months).astype(np.int64) + 1).astype(np.int8)
    columns["month"] = (months.astype(np.int64) % 12 + 1).astype(np.int8)
    columns["year"] = (months.astype(np.int64) // 12 + 1970).astype(np.int16)
    _write(folder / lastfm.TAGGINGS, columns)
    names = [f"artist {number}" for number in range(1, items + 1)]
    artists = {"id": np.arange(1, items + 1), "name": names, "url": names, "pictureURL": names}
    _write(folder / lastfm.ARTISTS, artists)


def _pairs(rows: int, items: int, random: np.random.Generator) -> np.ndarray:
    """Different pairs, as ascending numbers `user * items + item`: int64 [rows]."""
    users, left = rows // ROWS_OF_USER, rows
    parts = []
    for start in range(0, users, USERS_AT_ONCE):
        count = min(USERS_AT_ONCE, users - start)
        wanted = left if start + count == users else count * ROWS_OF_USER
        drawn = np.empty(0, np.int64)
        while len(drawn) < wanted:
            of_user = random.integers(start, start + count, 2 * wanted)
            # P(item <= x) = log x / log(items + 1): the frequency falls as 1 / x.
            item = (items + 1) ** random.random(2 * wanted)
            pairs = of_user * items + np.minimum(item.astype(np.int64), items) - 1
            drawn = np.unique(np.concatenate([drawn, pairs]))
        kept = random.choice(len(drawn), wanted, replace=False)
        parts.append(np.sort(drawn[kept]))
        left -= wanted
    return np.concatenate(parts)


def _write(path: Path, columns: dict[str, object]) -> None:
    options = csv.WriteOptions(delimiter="\t", quoting_style="none", quoting_header="none")
    csv.write_csv(pa.table(columns), path, options)


def in_a_process_of_its_own(
    config: PrepareBenchConfig, source: Path, protocol: str
) -> dict[str, float]:
    """Prepare `source` in a new process; returns the result of `measured`."""
    command = [sys.executable, "-m", __name__, str(source), str(config.threads), protocol]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"prepare failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(source: Path, threads: int, protocol: str) -> dict[str, float]:
    """Prepare `source` in this process.

    Further threads draw candidates and write the tables; `threads` limits pyarrow's alone.

    Returns:
        `seconds`, `cpu_seconds`, peak `bytes` and the number of `interactions`.
    """
    pa.set_cpu_count(threads)
    for name in lastfm.OFFICIAL_ROWS:
        with (source / name).open("rb") as stream:
            blocks = iter(lambda: stream.read(2**20), b"")
            lastfm.OFFICIAL_ROWS[name] = sum(block.count(b"\n") for block in blocks) - 1
    chosen = PrepareConfig(dataset="lastfm", protocol=protocol, source=str(source))
    took: list[float] = []

    def work(folder: Path) -> None:
        start, busy = time.perf_counter(), time.process_time()
        prepare(chosen, folder / "tables", Checksums(folder / MEMORY))
        took.extend([time.perf_counter() - start, time.process_time() - busy])

    with tempfile.TemporaryDirectory(dir=source) as folder:
        peak = peak_bytes(lambda: work(Path(folder)), "cpu")
        manifest = read_json(Path(folder) / "tables" / "manifest.json")
    if peak is None:
        raise ValueError("the system does not tell a process's peak memory: run this on Linux")
    counted = manifest["counts"]["interactions"]
    return {
        "seconds": took[0],
        "cpu_seconds": took[1],
        "bytes": peak,
        "interactions": counted,
    }


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
