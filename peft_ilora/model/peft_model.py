"""What PEFT's `PeftModel` does for adapters of this method, beyond what it asks the tuner.

Files are read and written in methods of PeftModel that no tuner has a part in. They are wrapped
here; for every other method of PEFT they do what they did.
"""

import copy
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.model.card import README, write_card
from peft_ilora.model.files import check_config, check_weights, is_own, keys_of
from peft_ilora.model.ilora import ILoRAModel
from peft_ilora.model.renaming import check_renaming
from peft_ilora.model.start import read_start, take_over
from peft_ilora.rollback import Snapshot
from peft_ilora.routing.forward import is_routed

_Method = Callable[..., Any]


def install() -> None:
    """Wrap the methods, once."""
    wrappers = {
        "__init__": _made,
        "add_adapter": _made,
        "from_pretrained": _from_pretrained,
        "load_adapter": _load_adapter,
        "save_pretrained": _save_pretrained,
        "create_or_update_model_card": _create_or_update_model_card,
    }
    for name, wrapper in wrappers.items():
        own = inspect.getattr_static(PeftModel, name)
        function = own.__func__ if isinstance(own, classmethod) else own
        if not hasattr(function, "knows_ilora"):
            wrapped = wrapper(function)
            wrapped.knows_ilora = True  # type: ignore[attr-defined]
            setattr(PeftModel, name, type(own)(wrapped) if own is not function else wrapped)


def _made(original: _Method) -> _Method:
    """A new adapter starts from the LoRA that its configuration names, or is not made."""
    signature = inspect.signature(original)

    @wraps(original)
    def made(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        config = given.arguments["peft_config"]
        if not isinstance(config, ILoRAConfig) or config.init_from is None:
            return original(self, *args, **kwargs)
        before = Snapshot(given.arguments.get("model", self), config)
        try:
            config.check()
            start = read_start(config)
            if given.arguments["low_cpu_mem_usage"]:
                raise ValueError(
                    f"{start.name} gives the adapter values, but low_cpu_mem_usage=True makes it "
                    "without any, for those of a file to come: leave one of the two out"
                )
            result = original(self, *args, **kwargs)
            take_over(start, self, given.arguments["adapter_name"])
        except BaseException:
            before.restore()
            raise
        return result

    return made


def _from_pretrained(original: _Method) -> _Method:
    """A load that fails leaves the base model as it was, and reads no `init_from`."""
    signature = inspect.signature(original)

    @wraps(original)
    def from_pretrained(cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(cls, model, model_id, *args, **kwargs)
        config = given.arguments.get("config")
        if isinstance(config, ILoRAConfig) and config.init_from is not None:
            given.arguments["config"] = loaded = copy.copy(config)
            loaded.init_from = None
            return from_pretrained(*given.args, **given.kwargs)
        if not isinstance(model, nn.Module) or is_routed(model):
            return original(cls, model, model_id, *args, **kwargs)
        folder = _local(model_id, kwargs)
        if folder is not None:
            check_config(folder)
        before = Snapshot(model)
        try:
            return original(cls, model, model_id, *args, **kwargs)
        except BaseException:
            # PEFT takes accelerate's hooks off before it looks for the target modules
            if is_routed(model) or (folder is not None and is_own(folder)):
                before.restore()
            raise

    return from_pretrained


def _load_adapter(original: _Method) -> _Method:
    """A load that fails leaves the adapters as they were; no pickle is loaded."""
    signature = inspect.signature(original)

    @wraps(original)
    def load_adapter(self: PeftModel, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.base_model, ILoRAModel):
            return original(self, model_id, *args, **kwargs)
        before = Snapshot(self)
        try:
            folder = _local(model_id, kwargs)
            if folder is None:
                weights = _remote_weights(model_id, kwargs)
            else:
                check_config(folder)
                check_weights(folder)
                weights = folder / SAFETENSORS_WEIGHTS_NAME
            result = original(self, model_id, *args, **kwargs)
            given = signature.bind(self, model_id, *args, **kwargs).arguments
            config = self.base_model.adapters.config(given["adapter_name"])
            if config.gate == "trunk" and given.get("key_mapping"):
                check_renaming(keys_of(weights), given["key_mapping"])
            return result
        except BaseException as error:
            before.restore()
            if isinstance(error, KeyError) and str(error.args[0]).startswith("base_model."):
                raise ValueError(
                    f"the adapter's weights are incomplete: {error.args[0]!r} is missing, which "
                    "modules_to_save or trainable_token_indices asks for. Save the adapter again"
                ) from error
            raise

    return load_adapter


def _save_pretrained(original: _Method) -> _Method:
    """No pickle is written: it could not be loaded again. The card names what is saved."""
    signature = inspect.signature(original)

    @wraps(original)
    def save_pretrained(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.base_model, ILoRAModel):
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        if not given.get("safe_serialization", True):
            raise ValueError(
                "safe_serialization=False writes a pickle, which is never loaded for an iLoRA "
                "adapter: leave it at True"
            )
        result = original(self, *args, **kwargs)
        selected = given.get("selected_adapters")
        if selected is not None and given.get("is_main_process", True):
            write_card(self, Path(given["save_directory"]), selected, is_new=False)
        return result

    return save_pretrained


def _create_or_update_model_card(original: _Method) -> _Method:
    """The card says what the adapter is, and how it is loaded."""

    @wraps(original)
    def create_or_update_model_card(self: PeftModel, output_dir: Any) -> Any:
        is_new = not Path(output_dir, README).exists()
        result = original(self, output_dir)
        if isinstance(self.base_model, ILoRAModel):
            write_card(self, Path(output_dir), list(self.peft_config), is_new)
        return result

    return create_or_update_model_card


def _local(model_id: Any, kwargs: dict[str, Any]) -> Path | None:
    """Return an adapter's folder; None: it lies on the Hugging Face Hub, or nowhere."""
    folder = Path(model_id, kwargs.get("subfolder") or "")
    return folder if folder.is_dir() else None


def _remote_weights(model_id: Any, kwargs: dict[str, Any]) -> Path:
    """Fetch an adapter's weights, which PEFT will find in the cache, lest it fetch a pickle.

    Raises:
        ValueError: The repository holds no safetensors file.
    """
    known = inspect.signature(hf_hub_download).parameters
    options = {key: value for key, value in kwargs.items() if key in known}
    try:
        return Path(hf_hub_download(str(model_id), SAFETENSORS_WEIGHTS_NAME, **options))
    except (EntryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"model_id={str(model_id)!r} is no folder, and no repository of the Hugging Face Hub "
            f"that holds {SAFETENSORS_WEIGHTS_NAME} (a pickle, adapter_model.bin, is never loaded)"
        ) from error
