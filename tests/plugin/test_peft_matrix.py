"""The program that runs PEFT's own tests with iLoRA: what it refuses, selects and concludes."""

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from peft_matrix.checkout import FILES, CheckoutError, check, copy_tests, opened
from peft_matrix.page import PAGE, rewritten, section, written
from peft_matrix.reasons import REASONS, Reason
from peft_matrix.verdict import Verdict, judge, unneeded

TESTS = Path(__file__).parents[1]
support = pytest.mark.support

NO = Reason("refused", "DoRA", "Every row has its own norm.", "^no DoRA")
OTHER = Reason("differs", "ranks", "The ranks add up.", "^Rank", ("test_rank*",))
PASSED, SKIPPED = {"outcome": "passed"}, {"outcome": "skipped"}


def failed(message: str) -> dict[str, str]:
    return {"outcome": "failed", "error": "ValueError", "message": message}


# -------------------------------------------------------------------- which source is taken


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source of the installed release, whose tests are empty."""
    root = tmp_path / f"peft-{version('peft')}"
    (root / "src" / "peft").mkdir(parents=True)
    (root / "tests").mkdir()
    state(root, version("peft"))
    for name in (*FILES.values(), "testing_common.py", "testing_utils.py"):
        (root / "tests" / name).touch()
    return root


def state(root: Path, release: str) -> None:
    text = f'__version__ = "{release}"\n'
    (root / "src" / "peft" / "__init__.py").write_text(text, encoding="utf-8")


def test_a_source_of_the_installed_release_is_taken(source, tmp_path) -> None:
    check(source)
    copy_tests(source, tmp_path / "run")
    copied = {path.name for path in (tmp_path / "run" / "tests").iterdir()}
    assert copied == {"__init__.py", "testing_common.py", "testing_utils.py", *FILES.values()}


def test_a_source_distribution_is_unpacked(source, tmp_path) -> None:
    with tarfile.open(tmp_path / "peft.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    root = opened(tmp_path / "peft.tar.gz", tmp_path / "unpacked")
    check(root)
    assert root == tmp_path / "unpacked" / source.name


@pytest.mark.parametrize("release", ["0.20.0", f"{version('peft')}.dev0", "99.0.0"])
def test_another_release_is_refused_with_both_versions_and_a_way_out(source, release) -> None:
    state(source, release)
    installed = version("peft")
    with pytest.raises(CheckoutError, match=f"is PEFT {release}, but peft {installed}") as error:
        check(source)
    assert f"git checkout v{installed}" in str(error.value)
    assert f"pip download peft=={installed} --no-binary :all: --no-deps" in str(error.value)


def test_a_folder_that_is_not_peft_is_refused(tmp_path) -> None:
    with pytest.raises(CheckoutError, match=r"holds no src/peft/__init__\.py: name a checkout"):
        check(tmp_path)


def test_a_source_without_its_tests_is_refused(source) -> None:
    (source / "tests" / "testing_common.py").unlink()
    with pytest.raises(CheckoutError, match=r"lacks testing_common\.py: name a checkout"):
        check(source)


@pytest.mark.parametrize("content", [None, b"not an archive"])
def test_the_command_refuses_what_is_no_source_in_one_line(tmp_path, content) -> None:
    named = tmp_path / "peft.tar.gz"
    if content is not None:
        named.write_bytes(content)
    command = [sys.executable, str(TESTS / "peft_matrix"), str(named)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert f"{named} is neither a folder nor a readable .tar.gz" in process.stderr


# -------------------------------------------------------------------- what is concluded


def test_each_test_is_counted_once() -> None:
    lora = {"a::ok": PASSED, "a::no": PASSED, "a::skip": SKIPPED, "a::test_rank[x]": PASSED}
    found = {
        "a::ok": PASSED,
        "a::no": failed("no DoRA"),
        "a::skip": SKIPPED,
        "a::test_rank[x]": failed("Rank 4\nis not 8"),
    }
    verdict = judge(lora, found, (NO, OTHER))
    assert (verdict.passed, verdict.skipped, verdict.faults) == (1, 1, [])
    assert verdict.reasons == {NO: 1, OTHER: 1}
    assert (verdict.of_kind("refused"), verdict.of_kind("differs")) == (1, 1)


@pytest.mark.parametrize(
    ("test", "result"),
    {
        "a refusal that no reason names": ("a::t", failed("no VeRA")),
        "a reason's words in another test": ("a::test_other[test_rank]", failed("Rank 4")),
        "skipped, where LoRA is not": ("a::t", SKIPPED),
    }.values(),
)
def test_what_no_reason_explains_is_a_fault(test, result) -> None:
    verdict = judge({test: PASSED}, {test: result}, (NO, OTHER))
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith(test)
    assert not verdict.reasons


def test_a_test_that_did_not_run_is_a_fault() -> None:
    assert judge({"a::t": PASSED}, {}, (NO,)).faults == ["a::t: did not run"]


def test_a_reason_that_no_test_has_any_longer_is_told() -> None:
    verdict = judge({"a::t": PASSED}, {"a::t": failed("no DoRA")}, (NO, OTHER))
    told = list(unneeded({"uniform": Verdict(), "routed": verdict}, (NO, OTHER)))
    assert told == ["reasons.py: no test has the reason 'ranks' any longer; remove it"]


# -------------------------------------------------------------------- what is written


def test_the_section_takes_the_place_of_the_former_one() -> None:
    verdict = judge({"a::t": PASSED}, {"a::t": failed("no DoRA")}, (NO,))
    text = section({"custom": {"lora": Verdict(passed=1), "uniform": verdict}}, (NO,))
    assert "| custom | uniform | 0 | 1 | 0 | 0 | 0 |" in text
    assert "| refused: DoRA | 1 | Every row has its own norm. |" in text
    page = rewritten(PAGE.read_text(encoding="utf-8"), text)
    assert written(page) == text
    assert rewritten(rewritten(page, "Other.\n"), text) == page


def test_the_page_has_the_reasons_of_the_table_and_no_faults() -> None:
    rows = [line for line in written(PAGE.read_text(encoding="utf-8")).splitlines() if line]
    reasons = [row for row in rows if row.startswith(("| refused", "| differs"))]
    assert len(reasons) == len(REASONS)
    for row, reason in zip(reasons, REASONS, strict=True):
        assert row.startswith(f"| {reason.kind}: {reason.what} | ")
        assert row.endswith(f" | {reason.why} |")
    runs = [row for row in rows if row.startswith(tuple(f"| {part} | " for part in FILES))]
    assert len(runs) == 3 * len(FILES)
    assert all(row.endswith("| 0 |") for row in runs)


# -------------------------------------------------------------------- what is run

A_TEST_FILE = """
import pytest, torch
from peft import IA3Config, LoraConfig, get_peft_model

CONFIGS = [(LoraConfig, {"target_modules": ["0"]}), (IA3Config, {})]

@pytest.mark.parametrize("config_cls,kwargs", CONFIGS)
def test_of_each_method(config_cls, kwargs):
    config = config_cls(**kwargs)
    assert type(config).__name__ == "ILoRAConfig"
    assert (config.r, config.lora_alpha, config.missing_routing) == (8, 8, "error")

def test_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    config = LoraConfig(target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(model, config).eval()
    x = torch.randn(3, 4)
    before = model(x)
    assert torch.allclose(before, model.merge_and_unload()(x), atol=1e-4)

def test_of_another_method():
    assert IA3Config()
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_tests_of_lora_are_run_with_ilora_in_its_place(source, tmp_path) -> None:
    run, record = tmp_path / "run", tmp_path / "record.json"
    (source / "tests" / FILES["custom"]).write_text(A_TEST_FILE, encoding="utf-8")
    copy_tests(source, run)
    command = [sys.executable, "-m", "pytest", f"tests/{FILES['custom']}", "-c", "pytest.ini"]
    command += ["-p", "peft_matrix.plugin", "--rootdir", str(run)]
    command += ["--matrix-adapter", "routed", "--matrix-record", str(record)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    process = subprocess.run(
        command, cwd=run, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert process.returncode == 0, process.stdout.decode()
    outcomes = json.loads(record.read_text(encoding="utf-8"))
    file = FILES["custom"]
    assert outcomes == {
        f"{file}::test_of_each_method[LoraConfig-kwargs0]": PASSED,
        f"{file}::test_by_name": PASSED,
    }


@pytest.mark.slow
@support("Versions", "PEFT's own tests of LoRA: custom and decoder models", "works")
def test_a_part_of_the_matrix_has_no_fault() -> None:
    """Run with PEFT_CHECKOUT=PATH, a checkout or source distribution of the installed PEFT."""
    named = os.environ.get("PEFT_CHECKOUT")
    if not named:
        pytest.skip("PEFT_CHECKOUT names no checkout of PEFT")
    command = [sys.executable, str(TESTS / "peft_matrix"), named, "--only", "custom"]
    command += ["-k", "test_merge_layers or test_multiple_active_adapters"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.endswith("no fault\n")
