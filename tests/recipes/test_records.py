import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.artifacts import write_text
from recipes.records import (
    RECORD,
    Record,
    Stage,
    installed_versions,
    parsed,
    read_record,
    required_record,
)
from recipes.stages import OLDER, UNFINISHED, run_stage

STAGE = Stage("bake", {"heat": 180, "minutes": [20, 5]}, {"dough": "d0", "oven": "o0"}, version=2)


class Work:
    """Writes two files, the second of which another run makes differently; counts its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self, place: Path) -> None:
        self.runs += 1
        write_text(place / "cake.txt", "cake")
        write_text(place / "inner" / "note.txt", f"run {self.runs}")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "stage")


def run(work: Work, stage: Stage = STAGE) -> Record:
    return run_stage(stage, work.folder, work)


def older(folder: Path) -> list[Path]:
    """Records of the results that have been replaced."""
    return sorted((folder / OLDER).glob(f"*/{RECORD}"))


def note(folder: Path) -> str:
    return (folder / "inner" / "note.txt").read_text()


def test_a_record_says_all_that_determines_a_stage_and_what_it_wrote(work: Work) -> None:
    record = run(work)
    assert record == parsed(work.folder / RECORD)
    assert (record.stage, record.version, record.fingerprint) == ("bake", 2, STAGE.fingerprint)
    assert (record.config, record.inputs) == (dict(STAGE.settings), dict(STAGE.inputs))
    assert sorted(record.files) == ["cake.txt", "inner/note.txt"]
    assert record.versions == installed_versions()
    assert record.seconds >= 0


def test_a_stage_whose_record_holds_is_skipped(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(work)
    capsys.readouterr()
    assert run(work) == first
    assert work.runs == 1
    assert capsys.readouterr().out == f"[bake] already done: {work.folder}\n"


def lose(folder: Path) -> None:
    (folder / "cake.txt").unlink()


def change(folder: Path) -> None:
    (folder / "inner" / "note.txt").write_text("run 2")  # as long as before


DAMAGES = {"lost": (lose, "cake.txt"), "changed": (change, "inner/note.txt")}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_stage_that_lost_a_file_runs_again_and_names_it(
    work: Work, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(work)
    damage, file = DAMAGES[name]
    damage(work.folder)
    record = run(work)
    assert work.runs == 2
    assert f"[bake] has lost or changed files ({file})\n" in capsys.readouterr().out
    assert run(work) == record
    assert work.runs == 2


@pytest.mark.parametrize("name", DAMAGES)
def test_a_later_stage_does_not_read_lost_or_changed_files(work: Work, name: str) -> None:
    run(work)
    damage, file = DAMAGES[name]
    damage(work.folder)
    with pytest.raises(ValueError, match=rf"changed files \({file}\): run `.* bake` again"):
        required_record(STAGE, work.folder, "bake")


OTHERS = {
    "a setting": (
        replace(STAGE, settings={**STAGE.settings, "heat": 200}),
        "was made with heat=180 (now 200)",
    ),
    "a list and inputs": (
        replace(STAGE, settings={"minutes": [20, 6], "heat": 180}, inputs={"dough": "d1"}),
        "was made with minutes=[20, 5] (now [20, 6]), another dough, another oven",
    ),
    "new settings": (
        replace(STAGE, settings={**STAGE.settings, "glaze": {"of": "sugar"}}),
        "was made with glaze.of=None (now sugar)",
    ),
    "an input": (
        replace(STAGE, inputs={**STAGE.inputs, "oven": "o1"}),
        "was made with another oven",
    ),
    "a version": (replace(STAGE, version=3), "was made by version 2 of the stage, now 3"),
    "a stage": (replace(STAGE, name="fry"), "was made by another stage"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_stage_that_is_asked_for_otherwise_runs_again_and_says_why(
    work: Work, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, reason = OTHERS[name]
    before = run(work)
    capsys.readouterr()
    record = run(work, stage)
    assert work.runs == 2
    assert record.fingerprint == stage.fingerprint != before.fingerprint
    (kept,) = older(work.folder)
    assert parsed(kept) == before
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"[{stage.name}] {reason}; to be kept in {kept.parent}",
        f"[{stage.name}] -> {work.folder}",
    ]


def test_what_was_made_with_older_settings_is_taken_back_and_not_made_again(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [replace(STAGE, settings={"heat": heat}) for heat in (160, 180, 200)]
    records = [run(work, stage) for stage in stages]
    assert (work.runs, note(work.folder), len(older(work.folder))) == (3, "run 3", 2)
    capsys.readouterr()
    for place, (stage, record) in enumerate(zip(stages, records, strict=True), 1):
        assert run(work, stage) == record
        assert note(work.folder) == f"run {place}"
        assert required_record(stage, work.folder, "bake") == record
        assert len(older(work.folder)) == 2
    assert work.runs == 3
    assert "->" not in capsys.readouterr().out
    assert not (work.folder / UNFINISHED).exists()


def test_an_older_result_that_is_damaged_is_made_again(work: Work) -> None:
    first = run(work)
    run(work, replace(STAGE, version=3))
    (kept,) = older(work.folder)
    (kept.parent / "cake.txt").write_text("eaten")
    assert run(work).files["cake.txt"] == first.files["cake.txt"]
    assert work.runs == 3


def test_files_that_a_stage_no_longer_writes_go_with_the_older_result(work: Work) -> None:
    work.folder.mkdir()
    (work.folder / "mine.txt").write_text("a user's")
    run(work)
    record = run_stage(
        replace(STAGE, version=3), work.folder, lambda place: write_text(place / "bread", "bread")
    )
    assert list(record.files) == ["bread"]
    seen = [path.name for path in work.folder.iterdir() if path.is_file()]
    assert sorted(seen) == ["bread", "mine.txt", RECORD]
    assert sorted(run(work).files) == ["cake.txt", "inner/note.txt"]
    assert not (work.folder / "bread").exists() and work.runs == 1


def test_a_stage_inside_the_folder_of_another_is_left_alone(work: Work) -> None:
    part = Work(work.folder / "parts" / "one")
    run(part)
    run(work)
    # As a version recorded it that took all files in its folder for its own.
    path = work.folder / RECORD
    found = json.loads(path.read_text())
    found["files"] |= {f"parts/one/{name}": digest for name, digest in found["files"].items()}
    found["files"]["parts/one/inner/note.txt"] = read_record(part.folder, "bake").files[
        "inner/note.txt"
    ]
    del found["sha256"]
    path.write_text(json.dumps(found))
    run(work, replace(STAGE, version=3))
    run(part)
    assert part.runs == 1


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may run after it."""


@pytest.mark.parametrize("then", ["the new one", "the old one", "a third"])
def test_a_kill_at_any_step_of_the_exchange_loses_neither_the_old_nor_the_new(
    work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, then: str
) -> None:
    new, finished = replace(STAGE, version=3), 0
    for step in range(60):
        here = Work(tmp_path / str(step))
        old = run(here)
        with monkeypatch.context() as patch:
            killed = dies_at(step, patch)
            with contextlib.suppress(Killed):
                run(here, new)
        runs, made = here.runs, list(here.folder.rglob(f"*{new.fingerprint[:16]}/{RECORD}"))
        if not killed:
            assert finished > 8, "the exchange has more steps than that"
            return
        if then == "a third":
            run(here, replace(STAGE, version=4))
            runs += 1
        if then == "the old one":
            assert run(here) == old and here.runs == runs
        again = run(here, new)
        if made:  # killed after its work, within the exchange
            finished += 1
            assert here.runs == runs
        assert required_record(new, here.folder, "bake") == again
        known = note(here.folder), here.runs
        assert run(here) == old and note(here.folder) == "run 1"
        assert run(here, new) == again and (note(here.folder), here.runs) == known
    raise AssertionError("the exchange never ended")


def dies_at(step: int, patch: pytest.MonkeyPatch) -> list[bool]:
    """Let the process die before the given step of an exchange of files; True once it has."""
    steps, killed = [step], list[bool]()

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if killed or not steps[0]:
                killed.append(True)
                raise Killed
            steps[0] -= 1
            return original(*given, **named)

        return call

    for owner, name in ((os, "link"), (shutil, "rmtree"), (Path, "replace"), (Path, "unlink")):
        patch.setattr(owner, name, before(getattr(owner, name)))
    return killed


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"alpha": 32}, {"alpha": 32.0}),
        ({"modules": ["q", "v"]}, {"modules": ("q", "v")}),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3.0, "c": 2}, "a": 1}),
    ],
)
def test_equal_settings_in_another_spelling_are_the_same(
    work: Work, one: Mapping[str, Any], same: Mapping[str, Any]
) -> None:
    stages = [replace(STAGE, settings=settings) for settings in (one, same)]
    assert stages[0].fingerprint == stages[1].fingerprint
    assert run(work, stages[0]) == run(work, stages[1])
    assert work.runs == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 0.5}, {"a": 0.25}), ({"a": 1}, {"a": "1"}), ({"a": 1}, {"b": 1}), ({}, {"a": None})],
)
def test_other_settings_have_another_fingerprint(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> None:
    stages = [replace(STAGE, settings=settings) for settings in (one, other)]
    assert stages[0].fingerprint != stages[1].fingerprint


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def of_no_version(text: str) -> str:
    """As a record was before stages had versions."""
    fields = json.loads(text)
    del fields["version"]
    return json.dumps(fields)


def of_more_fields(text: str) -> str:
    return json.dumps(json.loads(text) | {"colour": "red"})


def a_list(text: str) -> str:
    return "[1, 2]"


def empty(text: str) -> str:
    return ""


def of_other_settings(text: str) -> str:
    """As after an edit by hand."""
    return text.replace("180", "200")


def of_a_time_in_words(text: str) -> str:
    return json.dumps(json.loads(text) | {"seconds": "long"})


def of_another_package(text: str) -> str:
    """One digit of a version is another, which no fingerprint covers."""
    return text.replace('"numpy": "2', '"numpy": "3')


FOREIGN = [
    of_another_package,
    truncated,
    of_no_version,
    of_more_fields,
    a_list,
    empty,
    of_other_settings,
    of_a_time_in_words,
]


@pytest.mark.parametrize("damage", FOREIGN, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_record_is_set_aside(
    work: Work, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(work)
    path = work.folder / RECORD
    content = damage(path.read_text(encoding="utf-8"))
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"another version .* is damaged: run .*recipes bake"):
        read_record(work.folder, "bake")
    record = run(work)
    assert work.runs == 2
    assert "was recorded by another version; to be kept in" in capsys.readouterr().out
    assert [kept.read_text(encoding="utf-8") for kept in older(work.folder)] == [content]
    assert read_record(work.folder, "bake") == record


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_a_stage_that_fails_keeps_the_older_result_and_its_own_beginning(
    work: Work, fault: type[BaseException]
) -> None:
    record, other = run(work), replace(STAGE, version=3)

    def failing(place: Path) -> None:
        assert not (place / "begun").exists()
        write_text(place / "begun", "half")
        raise fault

    with pytest.raises(fault):
        run_stage(other, work.folder, failing)
    assert required_record(STAGE, work.folder, "bake") == record
    assert run(work) == record and work.runs == 1

    def resuming(place: Path) -> None:
        (place / "begun").rename(place / "done")

    assert list(run_stage(other, work.folder, resuming).files) == ["done"]


def test_a_stage_that_fails_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    def failing(place: Path) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        run_stage(STAGE, tmp_path, failing)
    assert not list(tmp_path.iterdir())


def test_hidden_temporaries_of_a_killed_run_are_no_result(work: Work) -> None:
    place = work.folder / UNFINISHED / STAGE.fingerprint[:16]
    place.mkdir(parents=True)
    (place / ".cake.txt.x1").write_text("half a cake")
    assert sorted(run(work).files) == ["cake.txt", "inner/note.txt"]
    assert not (work.folder / UNFINISHED).exists()


def test_a_required_record_is_the_one_that_is_asked_for(work: Work) -> None:
    record = run(work)
    assert required_record(STAGE, work.folder, "bake") == record


def test_a_stage_that_has_not_been_run_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is missing: run `python -m recipes bake` first"):
        required_record(STAGE, tmp_path / "nothing", "bake")


def test_a_required_record_of_other_settings_is_refused_with_what_differs(work: Work) -> None:
    record = run(work)
    other = replace(STAGE, settings={**STAGE.settings, "heat": 200})
    message = (
        r"stage was made with heat=180 \(now 200\): run `python -m recipes bake` again, or give "
        "the settings it was made with"
    )
    with pytest.raises(ValueError, match=message):
        required_record(other, work.folder, "bake")
    assert asdict(read_record(work.folder, "bake")) == asdict(record)
    assert work.runs == 1


@pytest.mark.parametrize("field", ["config", "inputs", "files", "stage", "fingerprint"])
def test_a_record_whose_field_has_another_type_is_damaged(work: Work, field: str) -> None:
    run(work)
    path = work.folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: None}))
    with pytest.raises(ValueError, match="or is damaged"):
        required_record(STAGE, work.folder, "bake")
    run(work)
    assert work.runs == 2 and len(older(work.folder)) == 1


@pytest.mark.parametrize(
    ("name", "counts"),
    [("a.safetensors", True), ("a.parquet", True), ("adapter_config.json", False)],
)
def test_the_content_of_a_stage_is_what_later_ones_compute_with(
    tmp_path: Path, name: str, counts: bool
) -> None:
    made = [
        run_stage(
            STAGE, tmp_path / text, lambda place, text=text: write_text(place / name, text)
        ).content
        for text in ("one", "two")
    ]
    assert (made[0] != made[1]) == counts
