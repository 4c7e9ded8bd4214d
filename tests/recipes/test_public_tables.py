"""Popularity's rows of the two public tables, digit for digit by their rule for equal counts.

Their authors give equal counts to the smaller id, while this project takes the expectation over all
orders. With their rule the figures are equal, so data, order, split and mask are too.
"""

from pathlib import Path

import numpy as np
import pytest

from recipes.checksums import MEMORY, Checksums
from recipes.data.prepare import prepare
from recipes.data.tables import PreparedData
from recipes.experiment import PrepareConfig

RAW = Path(__file__).resolve().parents[2] / ".." / "shared/data/raw"


def prepared(folder: Path, dataset: str, source: str, **changes) -> PreparedData:
    if not (RAW / source).is_dir():
        pytest.skip(f"the official files of {source} are not at hand")
    config = PrepareConfig(
        dataset=dataset,
        source=str(RAW / source),
        protocol="leave-one-out",
        ties="stable",
        core=5,
        max_history=50,
        **changes,
    )
    prepare(config, folder, Checksums(folder.with_name(MEMORY)))
    return PreparedData.load(folder)


def popularity(data: PreparedData, counted: tuple[str, ...], masked: bool) -> list[float]:
    """HitRatio and NDCG at 5, 10 and 20 of the test rows; of equal counts the smaller id wins."""
    targets = np.concatenate([data.split(name).targets for name in counted])
    counts = np.bincount(targets, minlength=data.num_items)
    order = np.lexsort((np.arange(data.num_items), -counts))
    place = np.empty(data.num_items, np.int64)
    place[order] = np.arange(data.num_items)
    test = data.split("test")
    ranks = place[test.targets] + 1
    if masked:
        items, lengths = data.earlier("test", np.arange(len(test)))
        rows = np.repeat(np.arange(len(test)), lengths)
        above = place[items] < place[test.targets][rows]
        ranks -= np.bincount(rows[above], minlength=len(test))
    found = []
    for k in (5, 10, 20):
        hit = ranks <= k
        found += [hit.mean(), np.where(hit, 1 / np.log2(1 + ranks), 0).mean()]
    return [round(float(one), 4) for one in found]


def test_movielens_popularity_is_that_of_the_published_run(tmp_path):
    data = prepared(tmp_path / "ml", "movielens", "ml-100k", min_rating=1)
    assert (len(data.split("test")), data.num_items) == (943, 1349)
    plain = popularity(data, ("train",), masked=False)
    assert plain == [0.0255, 0.0144, 0.0498, 0.0224, 0.0838, 0.0308]
    masked = popularity(data, ("train",), masked=True)
    assert masked == [0.0583, 0.0363, 0.0870, 0.0452, 0.1283, 0.0555]


def test_lastfm_popularity_is_within_a_standard_error_of_the_published_one(tmp_path):
    data = prepared(tmp_path / "lf", "lastfm", "hetrec2011-lastfm-2k")
    assert (len(data.split("test")), data.num_items) == (1090, 3646)
    found = popularity(data, ("train", "val"), masked=True)[::2]
    for ours, theirs in zip(found, [0.0248, 0.0440, 0.0606], strict=True):
        assert abs(ours - theirs) <= (theirs * (1 - theirs) / 1090) ** 0.5
