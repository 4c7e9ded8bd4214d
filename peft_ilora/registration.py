"""Registers the method with PEFT, so that PEFT's own functions return our classes."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import register_peft_method

from peft_ilora.config import ILoRAConfig
from peft_ilora.model import ILoRAModel
from peft_ilora.peft_type import NAME, PREFIX, peft_type


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
        # A parameter in memory is called as LoRA's, `lora_A`, so the class has LoRA's prefix;
        # what is saved has one of its own (`peft_ilora/saving.py`), and PEFT finds it by this.
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type()] = PREFIX
    elif registered.__qualname__ != config_cls.__qualname__:
        raise ImportError(
            f"PEFT type {NAME} is already registered by {registered.__module__}; "
            "import only one of the two packages"
        )
