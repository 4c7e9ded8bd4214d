import ast
import importlib
import sys
from pathlib import Path

import pytest
from peft import PeftType, get_peft_config
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import peft_ilora
from peft_ilora.registration import check_peft_version, peft_type, register


def test_import_adds_the_peft_type_and_maps_it_to_our_classes() -> None:
    member = PeftType("ILORA")
    assert member is PeftType["ILORA"] is PeftType.ILORA is peft_type()
    assert member == "ILORA" and member in list(PeftType)
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is peft_ilora.ILoRAModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "ilora_"


def test_registering_again_changes_nothing() -> None:
    members = list(PeftType)
    register(peft_ilora.ILoRAConfig, peft_ilora.ILoRAModel)
    importlib.reload(peft_ilora)
    assert list(PeftType) == members


def test_peft_builds_our_config_by_its_type() -> None:
    config = get_peft_config({"peft_type": "ILORA", "r": 2, "num_experts": 3})
    assert isinstance(config, peft_ilora.ILoRAConfig)
    assert (config.r, config.num_experts) == (2, 3)


@pytest.mark.parametrize("version", ["0.20.4", "0.22.0", "1.0.0", "nonsense"])
def test_an_unknown_peft_release_is_refused_by_name(version) -> None:
    with pytest.raises(ImportError, match=rf"peft {version} is installed: pip install"):
        check_peft_version(version)


def test_a_foreign_method_under_our_name_is_refused() -> None:
    class Other:
        pass

    with pytest.raises(ImportError, match=r"already registered by peft_ilora\.config"):
        register(Other, Other)  # type: ignore[arg-type]


def test_the_plugin_imports_torch_and_peft_and_nothing_of_the_recipes() -> None:
    """Read from its files, so that imports inside of functions count."""
    imported = set()
    for file in Path(peft_ilora.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"peft_ilora"}
    # the last two are how PEFT's own files are read and fetched
    assert foreign == {"torch", "peft", "safetensors", "huggingface_hub"}


def test_the_prefix_is_in_the_name_of_every_adapter_parameter_and_of_no_other(llama) -> None:
    trainable = {name for name, p in llama.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in llama.named_parameters() if llama.prefix in name}


def test_peft_knows_saved_keys_by_a_prefix_that_loras_keys_do_not_have(llama) -> None:
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING["ILORA"]
    assert all(f".{prefix}" in key for key in get_peft_model_state_dict(llama))
