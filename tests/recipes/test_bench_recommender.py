import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.__main__ import main
from recipes.bench import prepare, recommender
from recipes.bench.prepare import PrepareBenchConfig, write_raw
from recipes.bench.recommender import RecommenderConfig, hit_ratio, interval, make_sequences
from recipes.datasets import lastfm

TINY = [
    "--num_users=24",
    "--num_items=30",
    "--shortest=4",
    "--longest=8",
    "--epochs=2",
    "--max_history=5",
    "--hidden_size=8",
    "--catalogue=500",
    "--scored_rows=64",
    "--rounds=3",
    "--threads=1",
]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This project's sides run here: starting Python with torch takes longer than the work."""
    official, in_a_process = dict(lastfm.OFFICIAL_ROWS), recommender.in_a_process

    def measured(config: PrepareBenchConfig, source: Path, protocol: str) -> dict[str, float]:
        return prepare.measured(source, config.threads, protocol)

    def side(command: list[str], data: Path, settings: Path) -> dict:
        if command[1] == "-m":
            return recommender.own_side(data, read(settings))
        return in_a_process(command, data, settings)

    monkeypatch.setattr(lastfm, "OFFICIAL_ROWS", official)
    monkeypatch.setattr(prepare, "in_a_process_of_its_own", measured)
    monkeypatch.setattr(recommender, "in_a_process", side)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("one_process")
def test_the_recommender_benchmark_times_this_side_alone_and_names_the_peers_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recommender.json"
    assert main(["bench", "recommender", *TINY, f"--out={out}"]) == 0
    assert "pip install torch==2.13.0 recbole==1.2.1" in capsys.readouterr().out
    found = read(out)
    # Every item but a user's first and last is a target.
    sequences = make_sequences(
        RecommenderConfig(num_users=24, num_items=30, shortest=4, longest=8, threads=1)
    )
    count = sum(len(items) - 2 for items in sequences)
    for name in ("SASRec", "GRU4Rec"):
        notes = found["notes"][name]
        assert notes["examples of an epoch"] == count
        assert list(notes["examples a second"]) == [name]
        mean, low, high = notes["HitRatio@10"][name]
        assert 0 <= low <= mean <= high <= 1
    assert [figure["against"] for figure in found["figures"]] == ["a quarter of the rows"]


PEER = """
import json, sys
sequences, settings = (json.load(open(name)) for name in sys.argv[1:])
assert settings["hidden_size"] == 8 and settings["epochs"] == 2
assert settings["learning_rate"] == 1e-3
assert settings["num_layers"] == dict(SASRec=2, GRU4Rec=1)[settings["model"]]
examples = sum(len(items) - 2 for items in sequences) + {more}
hits = [1] * len(sequences)
print(json.dumps(dict(seconds=[9, 1e-9], losses=[1], examples=examples, hits=hits, parameters=1)))
"""


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("more", [0, 1])
def test_a_peer_is_compared_on_the_same_examples_only(
    tmp_path: Path,
    more: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peer, out = tmp_path / "peer.py", tmp_path / "out.json"
    peer.write_text(PEER.format(more=more), encoding="utf-8")
    monkeypatch.setattr(recommender, "PEER", peer)
    command = ["bench", "recommender", *TINY, f"--peer_python={sys.executable}", f"--out={out}"]
    if more:
        assert main(command) == 2
        assert "the sides do not train on the same examples" in capsys.readouterr().err
        return
    assert main(command) == 0
    *figures, _ = read(out)["figures"]
    for speed, quality, target in zip(figures[::2], figures[1::2], (5, 1.5), strict=True):
        assert (speed["target"], speed["met"], speed["against"]) == (target, False, "RecBole")
        assert speed["ratio"] < 1e-3  # the warm-up epoch of 9 s does not count
        assert 0 <= quality["ratio"] <= 1


def test_the_ratio_of_hits_is_judged_by_its_interval() -> None:
    random = np.random.default_rng(0)
    peer = (random.random((3, 400)) < 0.4).astype(int)
    alike = hit_ratio("hits", random.permuted(peer, axis=1), peer)
    worse = hit_ratio("hits", (random.random((3, 400)) < 0.2).astype(int), peer)
    assert alike.met and alike.low < 1 < alike.high
    assert not worse.met and worse.high < 1
    mean, low, high = interval(peer)
    assert mean == pytest.approx(peer.mean())
    # Each user's hits are a mean of three; the interval is of a mean over 400 users.
    assert high - low == pytest.approx(2 * 1.96 * peer.mean(axis=0).std() / 20, rel=0.1)


def test_sequences_have_the_asked_lengths_and_are_the_same_every_time() -> None:
    config = RecommenderConfig(num_users=50, num_items=40, shortest=5, longest=9)
    sequences = make_sequences(config)
    assert {len(items) for items in sequences} == {5, 6, 7, 8, 9}
    assert {item for items in sequences for item in items} == set(range(40))
    assert make_sequences(config) == sequences


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1}, "epochs=1"),
        ({"shortest": 2}, "shortest=2"),
        ({"rounds": 2}, "rounds=2"),
    ],
)
def test_a_recommender_benchmark_that_measures_nothing_is_refused(
    change: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RecommenderConfig(**change)


@pytest.mark.parametrize("shuffled", [False, True])
def test_raw_files_hold_the_asked_count_of_different_pairs(tmp_path: Path, shuffled: bool) -> None:
    write_raw(tmp_path / "raw", 40_000, shuffled)
    table = pd.read_csv(tmp_path / "raw" / lastfm.TAGGINGS, sep="\t")
    assert list(table) == ["userID", "artistID", "tagID", "day", "month", "year"]
    pairs = table[["userID", "artistID"]]
    assert len(pairs.drop_duplicates()) == len(table) == 40_000
    assert pairs.equals(pairs.sort_values(["userID", "artistID"])) != shuffled
    assert table["userID"].nunique() == 40_000 // prepare.ROWS_OF_USER
    counts = table["artistID"].value_counts()
    assert counts.iloc[0] > 10 * counts.iloc[-1]
    names = pd.read_csv(tmp_path / "raw" / lastfm.ARTISTS, sep="\t")
    assert set(table["artistID"]) <= set(names["id"])


@pytest.mark.usefixtures("one_process")
@pytest.mark.slow
@pytest.mark.long
def test_the_prepare_benchmark_measures_two_sizes(tmp_path: Path) -> None:
    out = tmp_path / "prepare.json"
    command = ["bench", "prepare", "--rows=160_000", "--threads=1", f"--folder={tmp_path}"]
    protocols = ["leave-one-out", "llara"]
    assert main([*command, f"--protocols={json.dumps(protocols)}", f"--out={out}"]) == 0
    figures, notes = read(out)["figures"], read(out)["notes"]
    assert [figure["what"].split(", ")[-1] for figure in figures[::3]] == protocols
    time, memory, linear = figures[:3]
    assert time["ratio"] == pytest.approx(time["seconds"]["160,000"] / 120)
    assert time["met"] and memory["met"]
    gib = notes["leave-one-out, 160,000 interactions"]["GiB"]
    assert memory["ratio"] * 6 == pytest.approx(gib)
    assert linear["ratio"] > 0 and linear["target"] == 1.2
    assert [path.name for path in tmp_path.iterdir()] == ["prepare.json"]


def test_impossible_settings_of_the_prepare_benchmark_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows=1000 is too few"):
        PrepareBenchConfig(rows=1000)
    with pytest.raises(ValueError, match="protocols: 'own'"):
        PrepareBenchConfig(protocols=["own"])


@pytest.mark.slow
@pytest.mark.long
def test_each_side_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 40_000)
    config = PrepareBenchConfig(rows=40_000, threads=1)
    found = prepare.in_a_process_of_its_own(config, tmp_path / "raw", "chronological")
    assert found["interactions"] > 39_600 and found["seconds"] > 0 and found["bytes"] > 2**26
    data, settings = tmp_path / "data.json", tmp_path / "settings.json"
    chosen = {name: getattr(RecommenderConfig(epochs=2), name) for name in recommender.SHARED}
    settings.write_text(json.dumps(chosen | {"seed": 0, "model": "GRU4Rec"}), encoding="utf-8")
    data.write_text(json.dumps([[0, 1, 2, 3], [5, 4, 3, 2, 1]]), encoding="utf-8")
    command = [sys.executable, "-m", "recipes.bench.recommender"]
    found = recommender.in_a_process(command, data, settings)
    assert found["examples"] == 5 and len(found["hits"]) == len(found["seconds"]) == 2
