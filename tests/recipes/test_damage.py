"""Every file of a finished run, cut off or replaced: refused by name, or made again, the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .tiny_runs import Runs, copied, digests, finished_run, found, redone, refused

pytestmark = pytest.mark.plots

LOGS = (
    "results.json",
    "report.md",
    "report.html",
    "summary.txt",
    "predictions.parquet",
    "checksums.json",
)
"""Files that no record describes; also `plots` and `tokens`."""


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


def flipped(content: bytes) -> bytes:
    """One bit of the last quarter is another: as long as before, and often well-formed."""
    place = len(content) * 7 // 8
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": cut(0),
    "its first byte": lambda content: content[:1],
    "half of it": cut(0.5),
    "all but the last byte": lambda content: content[:-1],
    "of another kind": lambda content: b"PK\x03\x04" + bytes(60),
    "JSON of another kind": lambda content: b'{"format": 9}',
    "one bit": flipped,
}
FOLDER = "a folder in its place"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def runs(finished: Runs, tmp_path: Path) -> Runs:
    return copied(finished, tmp_path)


def put(path: Path, damage: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if damage == FOLDER:
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[damage](content))


def same_json(path: Path, whole: bytes) -> bool:
    """Whether a record without its last byte, a line's end, is still the same record."""
    return path.name == "record.json" and path.read_bytes() == whole[:-1]


def of_stages(folder: Path) -> list[str]:
    return [
        name
        for name in found(folder)
        if name not in LOGS and not name.startswith(("plots/", "tokens/"))
    ]


@pytest.mark.parametrize("damage", [*DAMAGES, FOLDER])
def test_a_report_of_damaged_stages_is_refused_by_file(
    runs: Runs, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = of_stages(runs.folder)
    assert len(names) > 30
    # Every file, each under two kinds of damage, so that the test stays short.
    chosen = names[[*DAMAGES, FOLDER].index(damage) % 4 :: 4]
    for name in chosen:
        path = runs.folder / name
        whole = path.read_bytes()
        put(path, damage)
        if damage == FOLDER or not same_json(path, whole):
            capsys.readouterr()
            assert runs("report") == 2, name
            line = refused(capsys.readouterr().err)
            assert path.name in line, (name, line)
            assert damage == FOLDER or "run `python -m recipes " in line, (name, line)
        path.rmdir() if damage == FOLDER else path.unlink()
        path.write_bytes(whole)
    assert runs("report") == 0


@pytest.mark.parametrize("damage", ["empty", "half of it", "one bit"])
def test_a_run_with_every_file_damaged_is_made_again_to_the_same_result(
    finished: Runs, runs: Runs, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in found(runs.folder):
        put(runs.folder / name, damage)
    capsys.readouterr()
    assert runs("run") == 0
    assert len(redone(capsys.readouterr().out)) >= 7
    assert digests(runs.folder) == computed(finished, runs)
    assert runs.results == finished.results


@pytest.mark.parametrize("part", range(4))
def test_a_run_with_one_stage_damaged_makes_that_again_and_keeps_the_others(
    finished: Runs, runs: Runs, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place, stage = {
        0: ("prepare/items.parquet", "prepare"),
        1: ("recommenders/sasrec/items.safetensors", "recommender sasrec"),
        2: ("adapt/ilora-seed0/adapter/adapter_model.safetensors", "adapt ilora seed 0"),
        3: ("evaluate/parts/ilora-seed0/predictions.parquet", "evaluate ilora seed 0"),
    }[part]
    put(runs.folder / place, "one bit")
    capsys.readouterr()
    assert runs("run") == 0
    said = capsys.readouterr().out
    assert redone(said) == [stage]
    assert f"[{stage}] has lost or changed files (" in said
    assert runs.results == finished.results


@pytest.mark.parametrize("damage", ["JSON of another kind", "one bit"])
def test_damaged_token_ids_and_checksums_are_made_again(
    finished: Runs, runs: Runs, damage: str
) -> None:
    """The cache is read when prompts are encoded anew: here for an evaluation that is gone."""
    for path in [*(runs.folder / "tokens").iterdir(), *runs.folder.glob("checksums.json")]:
        put(path, damage)
    shutil.rmtree(runs.folder / "evaluate")
    assert runs("run") == 0
    assert runs.results == finished.results


def computed(finished: Runs, runs: Runs) -> dict[str, str]:
    """What the files of a run are, but for those that hold the path of its folder."""
    mine, theirs = digests(runs.folder), digests(finished.folder)
    assert mine.keys() == theirs.keys()
    paths = ("adapter_config.json", "README.md")
    return {name: mine[name] if name.endswith(paths) else digest for name, digest in theirs.items()}
