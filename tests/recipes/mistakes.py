"""What can be done wrong with the recipes, and the line that answers: a part of docs/errors.md.

`python tests/recipes/mistakes.py` writes it; `test_mistakes.py` holds it against the code. The
commands are run on a tiny finished run, and none of them may change a file of it.
"""

import contextlib
import io
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from error_page import table, write_part
from mistakes_llm import AREAS
from tiny_runs import Runs, found

from recipes.__main__ import main as command_line
from recipes.locking import held

PART = "recipes"


@contextmanager
def nothing(runs: Runs) -> Iterator[None]:
    """No preparation."""
    yield


def without(*names: str) -> Callable[[Runs], contextlib.AbstractContextManager[None]]:
    """Files of the run that are gone while the command runs."""

    @contextmanager
    def situation(runs: Runs) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in names:
                hidden = (runs.folder / name).rename(runs.folder.parent / "hidden")
                stack.callback(hidden.rename, runs.folder / name)
            yield

    return situation


def holding(
    name: str, content: Callable[[bytes], bytes]
) -> Callable[[Runs], contextlib.AbstractContextManager[None]]:
    """A file beside or in the run that has another content while the command runs."""

    @contextmanager
    def situation(runs: Runs) -> Iterator[None]:
        path = runs.folder.parent / name
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(content(whole or b""))
        yield
        path.unlink() if whole is None else path.write_bytes(whole)

    return situation


@contextmanager
def in_use(runs: Runs) -> Iterator[None]:
    """Another command writes into the run's folder."""
    with held(runs.folder):
        yield


@dataclass(frozen=True)
class Mistake:
    """A command that is refused. `tiny.yaml` and `RUN` stand for the finished run's."""

    area: str
    command: str
    situation: Callable[[Runs], contextlib.AbstractContextManager[None]] = nothing
    words: str = ""
    """What is wrong, where the command does not show it."""


MISTAKES: list[Mistake] = []


def area(name: str, words: str, *commands: str) -> None:
    MISTAKES.extend(Mistake(f"{name}\n\n{words}", command) for command in commands)


area(
    "Settings of the recipes",
    "Refused before any work.",
    *(
        f"run tiny.yaml {fields}"
        for fields in (
            "--seeds 0",
            "--prepare.train_share 0",
            "--prepare.candidate_seed -1",
            "--prepare.synthetic.num_users 9",
            "--prepare.dataset netflix",
            "--prepare.protocol weekly",
            "--recommender.seed 4294967296",
            "--recommender.dropout 1",
            "--recommender.name markov",
            "--recommender.name text",
            "--recommender.name file",
            "--recommender.name file --recommender.user_vectors users.pt",
            "--recommender.name file --recommender.user_vectors users.parquet",
            "--adapt.batch_size many",
            "--adapt.batch_size true",
            "--adapt.max_stepz 1",
            "--adapt.lora_alpha .nan",
            "--adapt.learning_rate 1e400",
            "--adapt.target_modules []",
            "--adapt.gradient_accumulation_steps 3",
            "--adapt.stand_in.hidden_size 18",
            "--adapt.stand_in.vocab_size 100",
            "--evaluate.max_users 1",
            "--evaluate.min_history 11",
            "--evaluate.confidence 1",
            "--evaluate.bootstrap_samples 5",
            "--evaluate.ks []",
            "--evaluate.ks [1,30]",
            "--evaluate.ks [1,1]",
            "--evaluate.seed -1",
            "--methods [lora,lora]",
            "--methods [chatgpt]",
            "--methods [chat]",
            "--arms '[{method: ilora, num_experts: 3}]'",
            "--arms '[{method: ilora, num_experts: 3, expert_ranks: clusters}]'",
            "--arms '[{method: ilora, top_k: 3, expert_ranks: clusters}]'",
            "--arms '[{method: ilora, expert_ranks: []}]'",
            "--arms '[{method: lora, trained_on: ring}]'",
            "--arms '[{method: lora, trained_on: netflix}]'",
        )
    ),
)
area(
    "Gradients of groups of users",
    "Refused before an adapter is trained.",
    "gradients tiny.yaml --groups 1",
    "gradients tiny.yaml --groups many",
    "gradients tiny.yaml --rows 0",
    "gradients tiny.yaml --methods [sasrec]",
)
area(
    "Trainings that cannot be right",
    "Found in the training; what was trained before is kept.",
    "run tiny.yaml --recommender.learning_rate 1e30",
)
area(
    "A report or an evaluation of what did not run",
    "The run was made with `tiny.yaml` alone. Both values are named.",
    "report tiny.yaml --name other --prepare.candidate_seed 7",
    "report tiny.yaml --recommender.seed 1",
    "report tiny.yaml --adapt.max_steps 5000",
    "report tiny.yaml --adapt.precision bf16",
    "report tiny.yaml --seeds 3",
    "report tiny.yaml --methods [lora]",
    "report tiny.yaml --evaluate.min_history 9",
    "report tiny.yaml --evaluate.split val",
    "evaluate tiny.yaml --adapt.rank 8",
    "evaluate tiny.yaml --recommender.hidden_size 4",
)


for name, words, commands in AREAS:
    area(name, words, *commands)


def mistake(situation: Callable[..., object], words: str, command: str) -> None:
    MISTAKES.append(Mistake(AREA, command, situation, words))  # type: ignore[arg-type]


AREA = (
    "Files that are lost, cut off or changed\n\n"
    "`run` makes a damaged stage again, to the same result; a later stage alone refuses it."
)
ADAPTER = "run/adapt/ilora-seed0/adapter/adapter_model.safetensors"
mistake(without("prepare"), "no `RUN/prepare`", "recommender tiny.yaml")
mistake(without("recommenders/sasrec/record.json"), "no record of SASRec", "adapt tiny.yaml")
mistake(
    holding("run/prepare/items.parquet", lambda b: b[:-1]),
    "`items.parquet` cut off",
    "adapt tiny.yaml",
)
mistake(
    holding("run/recommenders/sasrec/items.safetensors", lambda b: b[:-4] + b"\0\0\xc0\x7f"),
    "NaN in the item vectors",
    "evaluate tiny.yaml",
)
mistake(holding(ADAPTER, lambda b: b[: len(b) // 2]), "half of the adapter", "evaluate tiny.yaml")
mistake(
    holding("run/evaluate/metrics.json", lambda b: b.replace(b"0", b"1")),
    "`metrics.json` edited",
    "report tiny.yaml",
)
mistake(holding("run/evaluate/record.json", lambda b: b[:100]), "half a record", "report tiny.yaml")
mistake(
    holding("run/evaluate/record.json", lambda b: b.replace(b"{", b'{"colour": "red",', 1)),
    "a record of a newer version",
    "report tiny.yaml",
)
AREA = "Files and folders that a command is given\n\nNothing is written."
mistake(nothing, "", "run nothing")
mistake(nothing, "", "run RUN")
mistake(holding("empty.yaml", lambda _: b""), "an empty file", "run BESIDE/empty.yaml")
mistake(holding("list.yaml", lambda _: b"[1, 2]"), "a list", "run BESIDE/list.yaml")
mistake(holding("open.yaml", lambda _: b"name: [a"), "cut off", "run BESIDE/open.yaml")
mistake(holding("table.yaml", lambda _: b"PAR1\xff\xfe"), "a table", "run BESIDE/table.yaml")
mistake(holding("file", lambda _: b""), "`--out` is a file", "run tiny.yaml --out BESIDE/file")
mistake(
    holding("file", lambda _: b""),
    "`--out` lies below a file",
    "run tiny.yaml --out BESIDE/file/run",
)
mistake(nothing, "a name of 300 letters", f"run tiny.yaml --out BESIDE/{'x' * 300}")
mistake(nothing, "no such files", "prepare lastfm --source BESIDE --out BESIDE/new")
mistake(in_use, "another command writes there", "run tiny.yaml")


def line_of(case: Mistake, runs: Runs) -> str:
    """The line that answers, with neither paths nor what differs from day to day."""
    places = {"BESIDE": runs.folder.parent, "RUN": runs.folder, "tiny.yaml": runs.experiment}
    given = [_placed(word, places) for word in shlex.split(case.command)]
    if "--out" not in given and "tiny.yaml" in case.command:
        given += ["--out", str(runs.folder)]
    said, errors = io.StringIO(), io.StringIO()
    with (
        case.situation(runs),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
    ):
        status = command_line(given)
    assert status == 2, (case.command, status, errors.getvalue())
    (line,) = (one for one in errors.getvalue().splitlines() if one.startswith("error: "))
    line = line.replace(str(runs.folder), "RUN").replace(str(runs.folder.parent), "BESIDE")
    line = re.sub(
        r"process \d+ on \S+ since [-\d]+ [\d:+]+ \(.*?\)", "process P on H since T (C)", line
    )
    return line.replace("x" * 300, "x..x").removeprefix("error: ")


def _placed(word: str, places: Mapping[str, Path]) -> str:
    head, slash, rest = word.partition("/")
    return f"{places.get(head, head)}{slash}{rest}"


def row(case: Mistake, line: str) -> str:
    """The table's row."""
    command = f"`{case.command.replace('x' * 300, 'x..x')}`"
    shown = f"{case.words}: {command}" if case.words else command
    escaped = re.sub(r"([|<])", r"\\\1", line)
    return f"| {shown} | {escaped} |"


def page(lines: dict[str, list[str]]) -> str:
    """The part of docs/errors.md."""
    count = sum(map(len, lines.values()))
    written = [
        f"{count} mistakes with `python -m recipes`, and the one line that each is answered with; "
        "the exit status is 2. Each row is a test (`tests/recipes/test_mistakes.py`), and the part "
        "is written by `python tests/recipes/mistakes.py`. `RUN` is the folder of a finished run, "
        "`BESIDE` the one around it. No file of the run changes, and the right command finds "
        "everything done.",
    ]
    for name, rows in lines.items():
        written += ["", f"## {name}", "", *table(["what was done", "error"], rows)]
    return "\n".join(written)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, rows = Runs(Path(folder)), dict[str, list[str]]()
        assert runs("run") == 0
        before = found(runs.folder)
        for case in MISTAKES:
            rows.setdefault(case.area, []).append(row(case, line_of(case, runs)))
            assert found(runs.folder) == before, case.command
    write_part(PART, page(rows))


if __name__ == "__main__":
    main()
