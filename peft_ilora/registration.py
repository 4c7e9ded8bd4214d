"""Registers the method with PEFT, so that PEFT's own functions return our classes.

`peft.utils.register_peft_method` refuses a name that is missing from the enum `PeftType`, and PEFT
offers no way to add one (peft issues #2273, #2282), so the member is added here, once, at import.
"""

import re
from importlib.metadata import version

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from peft_ilora.config import NAME, ILoRAConfig
from peft_ilora.model import peft_model
from peft_ilora.model.ilora import ILoRAModel
from peft_ilora.saving import PREFIX

SUPPORTED = ((0, 21), (0, 22))
"""PEFT releases whose seams this package knows: from the first, below the second."""


def check_peft_version(installed: str) -> None:
    """Refuse a PEFT release that this package was not written for.

    Raises:
        ImportError: `installed` lies outside of `SUPPORTED`.
    """
    found = re.match(r"(\d+)\.(\d+)", installed)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    if not SUPPORTED[0] <= release < SUPPORTED[1]:
        raise ImportError(
            f"peft_ilora knows peft >={low},<{high} but peft {installed} is installed: "
            f"pip install 'peft>={low},<{high}', or upgrade peft-ilora"
        )


def peft_type() -> PeftType:
    """Return `PeftType.ILORA`, adding it to the enum when it is not there yet."""
    known = PeftType._value2member_map_.get(NAME)
    if known is not None:
        return known  # type: ignore[return-value]
    check_peft_version(version("peft"))
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    setattr(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    return member


def register(config_cls: type[ILoRAConfig], model_cls: type[ILoRAModel]) -> None:
    """Register the pair under `PeftType.ILORA`. Idempotent.

    Raises:
        ImportError: Another package holds the name already.
    """
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type())
    if registered is None:
        register_peft_method(
            name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix
        )
        # A parameter in memory is named as LoRA's, `lora_A`, so the class has LoRA's prefix. What
        # is saved has a prefix of its own (`peft_ilora/saving.py`), by which PEFT finds it.
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type()] = PREFIX
        peft_model.install()
    elif registered.__qualname__ != config_cls.__qualname__:
        raise ImportError(
            f"PEFT type {NAME} is already registered by {registered.__module__}; "
            "import only one of the two packages"
        )
