"""The files of a saved adapter, judged before they are loaded: what is wrong, and what helps."""

import json
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from peft_ilora.config import NAME
from peft_ilora.saving import is_own_key

_AGAIN = "Save or download the adapter again"
_SAFELY = "Save the adapter with save_pretrained(folder), which writes safetensors"
_FOREIGN = {
    b"PK": ("it is a pickle (torch.save), which may run code and is never loaded", _SAFELY),
    b"\x80": ("it is a pickle, which may run code and is never loaded", _SAFELY),
    b"version https://git-lfs": (
        "it is a git-lfs pointer, not the file that it points to",
        "Run `git lfs pull` in its repository",
    ),
    b"<": ("it is a web page", "Download the file itself, not its page"),
}


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights cannot be loaded; nothing but the file's header is read.

    Raises:
        ValueError: There are none, or only a pickle, or the file is cut off or of another kind.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if path.is_file():
        keys_of(path)
    elif (folder / WEIGHTS_NAME).exists():
        raise ValueError(
            f"{folder} holds {WEIGHTS_NAME}, a pickle, which may run code and is never loaded, and "
            f"no {SAFETENSORS_WEIGHTS_NAME}: save the adapter with save_pretrained(folder)"
        )
    else:
        raise ValueError(
            f"there is no {SAFETENSORS_WEIGHTS_NAME} in {folder}: pass the folder that "
            "save_pretrained wrote (an adapter of another name than 'default' lies in a folder of "
            "that name inside of it)"
        )


def check_config(folder: Path) -> None:
    """Refuse a configuration that cannot be read, or that does not belong to its weights.

    Files of other methods are left to PEFT.

    Raises:
        ValueError: It is empty, cut off, no JSON object, or of another method than the weights.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        fields = json.loads(text)
        problem = None if isinstance(fields, dict) else f"a {type(fields).__name__}, not an object"
    except ValueError as error:
        fields, problem = None, f"no whole JSON ({error})" if text.strip() else "empty"
    if isinstance(fields, dict) and "peft_type" not in fields:
        problem = "without the field 'peft_type'"
    if not isinstance(fields, dict):
        fields = {}
    if problem is not None and (f'"{NAME}"' in text or _has_own_weights(folder)):
        raise ValueError(
            f"{path} is {problem}: it was cut off or is another file. {_AGAIN}, or write its "
            "ILoRAConfig there by config.save_pretrained(folder)"
        )
    if problem is None and fields["peft_type"] != NAME and _has_own_weights(folder):
        raise ValueError(
            f"{path} says peft_type={fields['peft_type']!r} but the weights beside it are an iLoRA "
            f"adapter: the two files do not belong together. {_AGAIN}"
        )


def is_own(folder: Path) -> bool:
    """Whether a folder's configuration is one of this method."""
    try:
        fields = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("peft_type") == NAME


def keys_of(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file.

    Raises:
        ValueError: It is none, or cut off.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        what, remedy = _diagnosis(path, error)
        raise ValueError(f"{path} is no whole safetensors file: {what}. {remedy}") from error


def _has_own_weights(folder: Path) -> bool:
    path = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        return path.is_file() and any(is_own_key(key) for key in keys_of(path))
    except ValueError:
        return False


def _diagnosis(path: Path, error: Exception) -> tuple[str, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        if not start:
            return "it is empty", _AGAIN
        for sign, found in _FOREIGN.items():
            if start.startswith(sign):
                return found
        length = int.from_bytes(start[:8], "little")
        if size < 8 + length and start[8:9] in (b"", b"{"):
            return f"its header of {length} bytes is cut off after {size} bytes", _AGAIN
        if start[8:9] != b"{":
            return f"it begins with {start[:8]!r}", _AGAIN
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"its header cannot be read ({error})", _AGAIN
    return f"it should have {8 + length + max(ends, default=0)} bytes and has {size}", _AGAIN
