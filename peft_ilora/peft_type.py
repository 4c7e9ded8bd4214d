"""The one touch on PEFT's closed enum: the member `PeftType.ILORA`.

`peft.utils.register_peft_method` refuses a name that is missing from `PeftType`, and PEFT offers no
way to add one (peft issues #2273, #2282), so the member is added here, once, at import.
"""

import re
from importlib.metadata import version

from peft.utils.peft_types import PeftType

NAME = "ILORA"
PREFIX = "ilora_"
"""Of saved keys."""
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
