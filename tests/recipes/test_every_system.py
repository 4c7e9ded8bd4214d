"""Every system on every dataset of the paper, with the stand-in at tiny settings.

The raw files are made up, in the official formats: so many users that two are tested.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from recipes.artifacts import read_table
from recipes.datasets import lastfm, movielens, steam
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
)
from recipes.llm.chat_endpoint import ChatEndpoint
from recipes.methods import METHODS
from recipes.pipeline import Pipeline

from .text_encoders import save

USERS, ITEMS, STEPS = 20, 12, 6
TITLES = [f"Title {letter}, The" for letter in "ABCDEFGHIJKL"]
Maker = Callable[[Path, pytest.MonkeyPatch], None]


def walks() -> list[list[int]]:
    """The items of each user in order, from 0, none of them twice."""
    random = np.random.default_rng(0)
    return [random.permutation(ITEMS)[:STEPS].tolist() for _ in range(USERS)]


def write(folder: Path, lines: dict[str, list[str]], end: str, encoding: str) -> None:
    for name, own in lines.items():
        (folder / name).write_bytes((end.join(own) + end).encode(encoding))


def movielens_files(folder: Path, patch: pytest.MonkeyPatch) -> None:
    films = [
        f"{number}|{title} (1995)|01-Jan-1995||http://x/{number}|" + "|".join("0" * 19)
        for number, title in enumerate(TITLES, 1)
    ]
    ratings = [
        f"{user}\t{item + 1}\t{3 + item % 3}\t{100 * user + place}"
        for user, items in enumerate(walks(), 1)
        for place, item in enumerate(items)
    ]
    # LLaRA loses the first line of the file: here one of a user who has another.
    lines = {movielens.FILMS: films, movielens.RATINGS: [ratings[-1], *ratings[:-1]]}
    write(folder, lines, "\n", "latin-1")
    rows = {name: len(own) for name, own in lines.items()}
    patch.setattr(movielens, "OFFICIAL_ROWS", rows)


def lastfm_files(folder: Path, patch: pytest.MonkeyPatch) -> None:
    artists = [f"{number}\t{title}\thttp://x/{number}\t" for number, title in enumerate(TITLES, 1)]
    taggings = [
        f"{user}\t{item + 1}\t{13 + place}\t1\t{1 + place}\t{1990 + user}"
        for user, items in enumerate(walks(), 2)
        for place, item in enumerate(sorted(items))
    ]
    heads = ["id\tname\turl\tpictureURL", "userID\tartistID\ttagID\tday\tmonth\tyear"]
    own = {lastfm.ARTISTS: [heads[0], *artists], lastfm.TAGGINGS: [heads[1], *taggings]}
    write(folder, own, "\r\n", "utf-8")
    rows = {name: len(lines) - 1 for name, lines in own.items()}
    patch.setattr(lastfm, "OFFICIAL_ROWS", rows)


def steam_files(folder: Path, patch: pytest.MonkeyPatch) -> None:
    splits = ["train"] * (USERS - 4) + ["val"] * 2 + ["test"] * 2
    rows = [
        (split, items[:end], items[end])
        for split, items in zip(splits, walks(), strict=True)
        for end in range(3, STEPS)
    ]
    table = pd.DataFrame(rows, columns=["split", "history", "target"])
    table.to_parquet(folder / steam.EXAMPLES)
    titles = pd.DataFrame({"item_id": range(ITEMS), "title": TITLES})
    titles.to_parquet(folder / steam.ITEMS)
    patch.setattr(steam, "NUM_ITEMS", ITEMS)
    # LLaRA's numbers of rows, of which the loader loses as many as the genuine files do.
    counts = table["split"].value_counts()
    patch.setattr(steam, "OFFICIAL_ROWS", {name: int(counts[name]) for name in counts.index})


MAKERS: dict[str, Maker] = {
    "movielens": movielens_files,
    "lastfm": lastfm_files,
    "steam": steam_files,
}
ARMS: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "endpoint": "http://localhost/v1"},
    "prefixrec": {"num_virtual_tokens": 2},
}


def experiment(
    name: str, raw: Path, out: Path, encoder: Path, methods: Sequence[str]
) -> Experiment:
    shared = out / "own.safetensors"
    return Experiment(
        out=str(out / "run"),
        arms=[{"method": one, "name": one, **ARMS.get(one, {})} for one in methods],
        prepare=PrepareConfig(
            dataset=name, protocol="llara", source=str(raw), max_history=4, num_candidates=4
        ),
        recommender=RecommenderConfig(
            hidden_size=4,
            num_layers=1,
            state_size=4,
            max_epochs=1,
            encoder=str(encoder),
            user_vectors=str(shared),
            item_vectors=str(shared),
        ),
        adapt=AdaptConfig(
            max_steps=1,
            batch_size=2,
            rank=4,
            prompt_history=2,
            logging_steps=1,
            target_modules=["q_proj"],
            redraw_candidates=False,
            stand_in=StandInConfig(
                hidden_size=8,
                intermediate_size=8,
                num_layers=1,
                num_heads=1,
                max_steps=2,
                batch_size=2,
            ),
        ),
        evaluate=EvaluateConfig(ks=[1, 3], bootstrap_samples=100),
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bert"), titles=TITLES)


def first_candidate(endpoint: ChatEndpoint, chats: Sequence[Any], label: str) -> list[Any]:
    """What a model behind an endpoint answers that always takes the first option."""
    options = [chat[-1]["content"].partition(":")[2].partition(";")[0] for chat in chats]
    own = {"finish_reason": "stop", "refusal": None, "usage": {}}
    return [{"answer": one, **own} for one in options]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", list(MAKERS))
def test_every_system_runs_on_every_dataset(
    name: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    MAKERS[name](raw, monkeypatch)
    monkeypatch.setattr(ChatEndpoint, "answers", first_candidate)
    monkeypatch.setattr("recipes.methods.chat.check_client", lambda: None)
    before = Pipeline.of(experiment(name, raw, tmp_path, encoder, ["popularity"]))
    before.prepare()
    own = {
        "users": torch.randn(99, 4, generator=torch.Generator().manual_seed(0)),
        "user_ids": torch.arange(99),
        "items": torch.randn(before.run.data.num_items, 4),
    }
    save_file(own, tmp_path / "own.safetensors")
    systems = [one for one in METHODS if one != "random"]
    pipeline = Pipeline.of(experiment(name, raw, tmp_path, encoder, systems))
    pipeline.recommender()
    pipeline.adapt()
    pipeline.evaluate()  # `test_systems.py` has the report, which takes as long as all of this
    table = read_table(tmp_path / "run" / "evaluate" / "predictions.parquet")
    rows = {arm: part["row"].tolist() for arm, part in table.groupby("method")}
    assert rows.keys() >= set(systems)
    assert all(part == rows["popularity"] for part in rows.values())
    assert {arm.name for arm in pipeline.arms} == set(METHODS)
    for one in systems:
        texts = table[table["method"] == one]["output"]
        writes = METHODS[one].reads_language_model or one == "chat"
        assert texts.notna().all() if writes else texts.isna().all()
