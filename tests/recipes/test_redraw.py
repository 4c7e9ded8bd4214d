"""Candidates of train windows in later epochs."""

from pathlib import Path

import numpy as np
import pytest

from recipes.checksums import MEMORY, Checksums
from recipes.data.prepare import prepare
from recipes.data.redraw import redrawn
from recipes.data.tables import PreparedData
from recipes.experiment import PrepareConfig, SyntheticConfig


def prepared(folder: Path, **changes) -> PreparedData:
    synthetic = SyntheticConfig(num_users=30)
    config = PrepareConfig(synthetic=synthetic, num_candidates=5, **changes)
    prepare(config, folder, Checksums(folder.with_name(MEMORY)))
    return PreparedData.load(folder)


@pytest.mark.parametrize("negatives", ["visible", "whole", "catalogue"])
def test_each_epoch_has_candidates_of_its_own_by_the_rule_of_the_frozen_ones(
    tmp_path: Path, negatives: str
) -> None:
    data = prepared(tmp_path / "tables", protocol="chronological", negatives=negatives)
    split = data.split("train")
    first, again, second = (redrawn(data, tmp_path / "tables", epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    for other in (split.candidates, second):
        assert (first != other).any(axis=1).mean() > 0.9
    users = {user: set(split.targets[split.user_ids == user]) for user in set(split.user_ids)}
    for row, candidates in enumerate(first):
        target, history = split.targets[row], set(split.histories[row]) - {-1}
        assert len(set(candidates)) == 5 and target in candidates
        met = set(candidates) - {target}
        if negatives == "visible":
            assert not met & history
        if negatives == "whole":
            assert not met & users[split.user_ids[row]]
    if negatives == "catalogue":
        others = [set(one) - {target} for one, target in zip(first, split.targets, strict=True)]
        assert any(one & set(h) for one, h in zip(others, split.histories, strict=True))
    assert abs((first == split.targets[:, None]).argmax(axis=1).mean() - 2) < 0.3
