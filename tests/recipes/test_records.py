import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.artifacts import read_json, write_text
from recipes.records import (
    OLDER,
    RECORD,
    Record,
    Stage,
    installed_versions,
    read_record,
    required_record,
    run_stage,
)

STAGE = Stage("bake", {"heat": 180, "minutes": [20, 5]}, {"dough": "d0", "oven": "o0"}, version=2)


class Work:
    """Writes two files, the second of which another run makes differently; counts its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self) -> None:
        self.runs += 1
        write_text(self.folder / "cake.txt", "cake")
        write_text(self.folder / "inner" / "note.txt", f"run {self.runs}")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "stage")


def run(work: Work, stage: Stage = STAGE) -> Record:
    return run_stage(stage, work.folder, work)


def older(folder: Path) -> list[Path]:
    return sorted(folder.glob("older-record-*.json"))


def test_a_record_says_all_that_determines_a_stage_and_what_it_wrote(work: Work) -> None:
    record = run(work)
    assert record == Record(**read_json(work.folder / RECORD))
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
    (folder / "inner" / "note.txt").write_text("another hand's")


@pytest.mark.parametrize("damage", [lose, change])
def test_a_stage_that_lost_a_file_runs_again(
    work: Work, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run(work)
    damage(work.folder)
    record = run(work)
    assert work.runs == 2
    assert "[bake] has lost or changed files; its record is kept as" in capsys.readouterr().out
    assert run(work) == record
    assert work.runs == 2


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (
            replace(STAGE, settings={**STAGE.settings, "heat": 200}),
            "was made with another heat",
        ),
        (
            replace(STAGE, settings={"minutes": [20, 6], "heat": 180}, inputs={"dough": "d1"}),
            "was made with another minutes, dough, oven",
        ),
        (
            replace(STAGE, settings={**STAGE.settings, "shape": None, "glaze": "sugar"}),
            "was made with another glaze",
        ),
        (
            replace(STAGE, inputs={**STAGE.inputs, "oven": "o1"}),
            "was made with another oven",
        ),
        (replace(STAGE, version=3), "was made by version 2 of the stage, now 3"),
        (replace(STAGE, name="fry"), "was made by another stage"),
    ],
)
def test_a_stage_that_is_asked_for_otherwise_runs_again_and_says_why(
    work: Work, stage: Stage, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(work)
    capsys.readouterr()
    record = run(work, stage)
    assert work.runs == 2
    assert record.fingerprint == stage.fingerprint != before.fingerprint
    (kept,) = older(work.folder)
    assert Record(**read_json(kept)) == before
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"[{stage.name}] {reason}; its record is kept as {kept.name}",
        f"[{stage.name}] -> {work.folder}",
    ]


def test_every_older_record_is_kept_under_a_name_of_its_own_and_is_no_result(work: Work) -> None:
    stages = [replace(STAGE, settings={"heat": heat}) for heat in (160, 180, 200)]
    records = [run(work, stage) for stage in stages]
    names = [f"{OLDER}{record.fingerprint[:12]}.json" for record in records[:2]]
    assert {path.name for path in older(work.folder)} == set(names)
    assert sorted(records[-1].files) == ["cake.txt", "inner/note.txt"]
    run(work, stages[-1])
    assert work.runs == 3


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


DAMAGES = [truncated, of_no_version, of_more_fields, a_list, empty]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
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
    assert "was recorded by another version of peft-ilora" in capsys.readouterr().out
    assert [kept.read_text(encoding="utf-8") for kept in older(work.folder)] == [content]
    assert read_record(work.folder, "bake") == record


def test_a_stage_that_fails_leaves_no_record_and_runs_again(work: Work) -> None:
    run(work)
    other = replace(STAGE, version=3)

    def failing() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(other, work.folder, failing)
    assert not (work.folder / RECORD).exists()
    assert len(older(work.folder)) == 1
    assert run(work, other).version == 3


def test_hidden_temporaries_of_a_killed_run_are_no_result(work: Work) -> None:
    work.folder.mkdir()
    (work.folder / ".cake.txt.x1").write_text("half a cake")
    assert sorted(run(work).files) == ["cake.txt", "inner/note.txt"]


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
        r"stage was made with another heat: run `python -m recipes bake` again, or give the "
        "settings it was made with"
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
