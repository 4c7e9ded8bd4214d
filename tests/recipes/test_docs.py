"""Pages about data, evaluation and studies: what they show is what the code says and does."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from recipes.__main__ import main
from recipes.artifacts import read_json
from recipes.data.notes import NEGATIVES, PROTOCOLS, RULES
from recipes.datasets import DATASETS, lastfm, movielens, steam
from recipes.evaluation.protocol import AVERAGES, MASKS, ROWS
from recipes.recommenders import RECOMMENDERS
from recipes.recommenders.losses import LOSSES

ROOT = Path(__file__).parents[2]
RAW = ROOT / ".." / "shared/data/raw"
GENUINE = {"MovieLens": RAW / "ml-100k", "LastFM": RAW / "hetrec2011-lastfm-2k"}


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", page(name), flags=re.DOTALL)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("datasets", [*DATASETS, *PROTOCOLS, *RULES, *NEGATIVES]),
        ("recommenders", [*RECOMMENDERS, *LOSSES]),
        ("evaluation", [*MASKS, *ROWS, *AVERAGES]),
    ],
)
def test_a_page_names_what_the_code_knows(name: str, known: list[str]) -> None:
    assert [one for one in known if f"`{one}`" not in page(name)] == []


def test_addresses_checksums_and_the_conversion_of_pickles_are_those_of_the_code() -> None:
    for archive in (movielens.ARCHIVE, lastfm.ARCHIVE):
        assert f"({archive.url}) | `{archive.md5}`" in page("datasets")
    assert steam.CONVERSION in blocks("datasets", "bash")


COUNTS = re.findall(
    r"^\| (MovieLens|LastFM) `(.+?)` \| ([\d,/ ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,/ ]+) \| "
    r"([\d,/ ]+) \|$",
    page("datasets"),
    flags=re.MULTILINE,
)


@pytest.mark.skipif(not all(map(Path.exists, GENUINE.values())), reason="needs the raw files")
@pytest.mark.parametrize("row", COUNTS, ids=lambda row: f"{row[0]} {row[1]}")
def test_counts_are_those_of_the_official_files(row: tuple[str, ...], tmp_path: Path) -> None:
    name, protocol, *shown = row
    folder, source = tmp_path / "prepare", str(GENUINE[name])
    options = ["--source", source, "--prepare.protocol", protocol, "--out", str(tmp_path)]
    assert main(["prepare", name.lower(), *options]) == 0
    counts = read_json(folder / "manifest.json")["counts"]
    usable = counts["last_windows_with_history_of_3"]
    found = [
        [*counts["users"].values()],
        [counts["items"]],
        [counts["interactions"]],
        [*counts["windows"].values()],
        [usable["val"], usable["test"]],
    ]
    assert shown == [" / ".join(f"{count:,}" for count in counts) for counts in found]


def test_the_programs_about_datasets_and_evaluate_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.chdir(tmp_path)
    (command,) = blocks("evaluation", "bash")
    assert main(shlex.split(command)[3:]) == 0
    for code, shown in zip(
        blocks("evaluation", "python"), blocks("evaluation", "text"), strict=True
    ):
        Path("program.py").write_text(code, encoding="utf-8")
        capsys.readouterr()
        runpy.run_path("program.py")
        assert capsys.readouterr().out.rstrip() == shown


@pytest.mark.slow
def test_the_study_of_the_page_says_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (block for block in blocks("pipeline", "yaml") if block.startswith("# ring.yaml"))
    monkeypatch.chdir(tmp_path)
    Path("ring.yaml").write_text(code, encoding="utf-8")
    assert main(["study", "ring.yaml", "--evaluate.bootstrap_samples", "100"]) == 0
    lines = Path("runs/ring/study.md").read_text(encoding="utf-8").splitlines()
    (shown,) = (block for block in blocks("pipeline", "text") if "Statistics" in block)
    assert set(shown.splitlines()) <= set(lines)
