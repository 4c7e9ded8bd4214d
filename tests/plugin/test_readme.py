"""The README's example is run, and prints what stands below it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow  # and so left out of runs with other releases, which draw other random numbers
def test_the_readmes_example_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    exec(found[1], {})
    assert capsys.readouterr().out == found[2]
    assert (tmp_path / "user-0" / "adapter_model.safetensors").exists()


def test_the_readme_fits_on_a_hundred_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 100
