"""Run PEFT's tests of custom and decoder models with iLoRA, and say what does not pass and why."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from peft_matrix.checkout import FILES, PACKAGE, CheckoutError, check, copy_tests, opened
from peft_matrix.page import PAGE, rewritten, section, written
from peft_matrix.reasons import REASONS
from peft_matrix.verdict import CONTROL, ROUTED, UNIFORM, Outcomes, Verdict, judge, unneeded

ROOT = Path(__file__).parents[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/peft_matrix", description=__doc__)
    parser.add_argument("peft", type=Path, help="checkout or .tar.gz of the installed release")
    parser.add_argument("--only", choices=FILES, help="one part of the matrix")
    parser.add_argument("-k", dest="expression", help="pytest's: only tests whose names fit")
    parser.add_argument("--write", action="store_true", help="write the section of versions.md")
    given = parser.parse_args()
    if given.write and (given.only or given.expression):
        parser.error("--write needs the whole matrix: leave out --only and -k")
    return given


def main() -> int:
    given = arguments()
    parts = [given.only] if given.only else list(FILES)
    verdicts: dict[str, dict[str, Verdict]] = {part: {} for part in parts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            root = opened(given.peft, folder / "source")
            check(root)
        except CheckoutError as error:
            sys.exit(str(error))
        copy_tests(root, folder / "run")
        _models(folder)
        for part in parts:
            control = _run(folder, part, CONTROL, given.expression)
            verdicts[part][CONTROL] = judge(control, control, REASONS)
            for run in (UNIFORM, ROUTED):
                found = _run(folder, part, run, given.expression)
                verdicts[part][run] = judge(control, found, REASONS)
    text = section(verdicts, REASONS)
    print(text)
    wrong = [
        f"{part}, {run}: {fault}"
        for part, by_run in verdicts.items()
        for run, verdict in by_run.items()
        for fault in verdict.faults
    ]
    if not given.only and not given.expression:
        wrong += _of_the_whole(verdicts, text, given.write)
    print("\n".join(wrong) or "no fault")
    return bool(wrong)


def _of_the_whole(verdicts: dict[str, dict[str, Verdict]], text: str, write: bool) -> list[str]:
    every = {f"{p} {run}": v for p, by_run in verdicts.items() for run, v in by_run.items()}
    wrong = list(unneeded(every, REASONS))
    page = PAGE.read_text(encoding="utf-8")
    if write:
        PAGE.write_text(rewritten(page, text), encoding="utf-8")
    elif written(page) != text:
        wrong.append(f"docs/{PAGE.name} says something else: look into it, then pass --write")
    return wrong


def _environment(folder: Path) -> dict[str, str]:
    path = [str(ROOT / "tests"), str(ROOT)]
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | settings


def _models(folder: Path) -> None:
    code = "import sys, pathlib, peft_matrix.models as m; m.write_models(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder / "hub")]
    subprocess.run(command, env=_environment(folder), check=True, capture_output=True)


def _run(folder: Path, part: str, adapter: str, expression: str | None) -> Outcomes:
    """Run one part with one adapter in a process of its own, which is patched for it."""
    work, record = folder / "run", folder / f"{part}-{adapter}.json"
    command = [sys.executable, "-m", "pytest", f"{PACKAGE}/{FILES[part]}", "--quiet", "--tb=no"]
    command += ["-p", "peft_matrix.plugin", "-p", "no:cacheprovider", "-p", "no:warnings"]
    command += ["-c", "pytest.ini", "--rootdir", str(work)]
    command += ["--matrix-adapter", adapter, "--matrix-record", str(record)]
    command += ["-k", expression] if expression else []
    print(f"{part}, {adapter} ...", flush=True)
    process = subprocess.run(
        command, env=_environment(folder), cwd=work, capture_output=True, text=True, check=False
    )
    if process.returncode not in (0, 1):  # all passed, some failed
        sys.exit(f"pytest stopped:\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}")
    return json.loads(record.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
