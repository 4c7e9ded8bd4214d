"""PEFT's tests, taken from a checkout or a source distribution of the installed release."""

import re
import shutil
import tarfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "tests"
"""The name under which PEFT's tests expect to be imported."""
FILES = {"custom": "test_custom_models.py", "decoder": "test_decoder_models.py"}
"""The parts of the matrix."""
_SHARED = ("testing_common.py", "testing_utils.py")


class CheckoutError(ValueError):
    """What was named is not PEFT at the installed version."""


def _remedy(installed: str) -> str:
    return (
        f"name a checkout (git checkout v{installed}) or what this downloads: "
        f"pip download peft=={installed} --no-binary :all: --no-deps"
    )


def opened(named: Path, folder: Path) -> Path:
    """Return the root of PEFT's source, unpacked into `folder` if an archive is named.

    Raises:
        CheckoutError: There is no such path, or it cannot be unpacked.
    """
    if named.is_dir():
        return named
    folder.mkdir()
    try:
        with tarfile.open(named) as archive:
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise CheckoutError(
            f"{named} is neither a folder nor a readable .tar.gz: {_remedy(version('peft'))}"
        ) from error
    return next(folder.iterdir(), folder)


def check(root: Path) -> None:
    """Refuse a source of another release than the installed one, or without its tests.

    Raises:
        CheckoutError: See above.
    """
    installed = version("peft")
    source = root / "src" / "peft" / "__init__.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    stated = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if stated is None:
        raise CheckoutError(f"{root} holds no src/peft/__init__.py: {_remedy(installed)}")
    if stated[1] != installed:
        raise CheckoutError(
            f"{root} is PEFT {stated[1]}, but peft {installed} is installed: {_remedy(installed)}"
        )
    lacking = [name for name in _files() if not (root / "tests" / name).is_file()]
    if lacking:
        raise CheckoutError(f"{root}/tests lacks {', '.join(lacking)}: {_remedy(installed)}")


def copy_tests(root: Path, folder: Path) -> None:
    """Copy the tests into a package of their own, without PEFT's settings for pytest."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (folder / "pytest.ini").touch()
    for name in _files():
        shutil.copy(root / "tests" / name, package / name)


def _files() -> tuple[str, ...]:
    return (*FILES.values(), *_SHARED)
