from pathlib import Path

import numpy as np
import pytest

from recipes.checksums import Checksums
from recipes.data.prepare import check_config, prepare
from recipes.data.splits import SPLITS
from recipes.data.tables import PreparedData, Split
from recipes.datasets import DATASETS
from recipes.datasets.dataset import Interactions
from recipes.datasets.ring import ITEMS, STEPS, USERS, Ring
from recipes.evaluation.metrics import hits, places_of
from recipes.experiment import PrepareConfig
from recipes.recommenders.markov import Markov
from recipes.recommenders.popularity import Popularity
from recipes.recommenders.recommender import Counter

RING = PrepareConfig(dataset="ring", protocol="chronological")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("ring")
    prepare(RING, folder / "prepare", Checksums(folder / "checksums.json"))
    return PreparedData.load(folder / "prepare")


# ------------------------------------------------------------------ every dataset


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_dataset_introduces_itself(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.name == name
    assert dataset.summary.strip() == dataset.summary != ""
    assert "\n" not in dataset.summary
    assert dataset.protocols
    for protocol in dataset.protocols:
        dataset.check(PrepareConfig(dataset=name, protocol=protocol))


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_protocol_that_a_dataset_does_not_know_is_refused(name: str) -> None:
    known = ", ".join(DATASETS[name].protocols)
    message = f"prepare.protocol='weekly': the dataset {name} knows {known}"
    with pytest.raises(ValueError, match=message):
        check_config(PrepareConfig(dataset=name, protocol="weekly"))


@pytest.mark.parametrize("name", ["synthetic", "ring"])
def test_a_dataset_without_files_refuses_a_source_and_knows_no_caveats(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.raw_files(None) == {}
    with pytest.raises(ValueError, match=f"prepare.source='x': the {name} dataset has no files"):
        dataset.raw_files(Path("x"))
    assert dataset.caveats(PrepareConfig(dataset=name, protocol="chronological")) == []


def test_only_the_synthetic_world_knows_what_is_attainable() -> None:
    known = {
        name: dataset.ceilings(PrepareConfig(dataset=name)) for name, dataset in DATASETS.items()
    }
    assert [name for name, ceilings in known.items() if ceilings] == ["synthetic"]


# ------------------------------------------------------------------ the ring


def test_walks_go_around_the_ring_seven_ids_a_step() -> None:
    found = Ring().read(RING, {})
    assert isinstance(found, Interactions)
    walks = found.table["item_id"].to_numpy().reshape(USERS, STEPS)
    assert walks[0].tolist() == [0, 7, 14, 21, 28, 35, 2, 9]  # by hand: 35 + 7 - 40 = 2
    assert walks[39].tolist() == [39, 6, 13, 20, 27, 34, 1, 8]
    assert walks[42].tolist() == [2, 9, 16, 23, 30, 37, 4, 11]
    assert set(walks[:, 0]) == set(range(ITEMS))
    assert found.titles[39] == "stop number 39"
    assert len(found.titles) == ITEMS


def test_what_comes_next_follows_from_the_last_item(ring: PreparedData) -> None:
    assert [len(ring.split(name)) for name in SPLITS] == [192 * STEPS, 24 * STEPS, 24 * STEPS]
    for split in ring.splits.values():
        walked = split.history_lengths > 0
        last = split.histories[walked, -1]
        assert split.targets[walked].tolist() == ((last + 7) % ITEMS).tolist()
    # Users are split in the order of their ids, by their first timestamp.
    assert sorted(set(ring.split("test").user_ids)) == list(range(216, 240))


def first(counter: type[Counter], data: PreparedData, split: Split) -> np.ndarray:
    """Expected HitRatio@1 of each row that has a history."""
    rows = split.history_lengths > 0
    candidates = split.candidates[rows]
    scores = counter(data.split("train"), data.num_items).scores(split.histories[rows], candidates)
    target = (candidates == split.targets[rows][:, None]).argmax(axis=1)
    return hits(places_of(scores, target), 1)


@pytest.mark.parametrize("name", SPLITS)
def test_a_markov_chain_ranks_the_target_first_in_every_row(ring: PreparedData, name) -> None:
    assert (first(Markov, ring, ring.split(name)) == 1).all()


def test_popularity_is_at_chance(ring: PreparedData) -> None:
    # 1 in 20, within three standard errors: of 1344 train rows .006, of 168 others .017.
    for name, error in (("train", 0.006), ("val", 0.017), ("test", 0.017)):
        share = first(Popularity, ring, ring.split(name)).mean()
        assert share == pytest.approx(1 / 20, abs=3 * error)
