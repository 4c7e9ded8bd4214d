"""Faster layers on top of `peft_ilora/layers`, which is complete without them.

`install` puts them into the tables that adapters are made from; `uninstall` takes them out again.
"""

from torch import nn

from peft_ilora.fast.linear import FusedLinear, Linear
from peft_ilora.layers.kinds import OWN_LAYERS, UPDATES
from peft_ilora.layers.update import GatedLinear


def install() -> None:
    """Let adapters that are made from now on use the fused products."""
    OWN_LAYERS[nn.Linear] = Linear
    _replace(GatedLinear, FusedLinear)


def uninstall() -> None:
    """Let adapters that are made from now on call modules, as `peft_ilora/layers` does."""
    OWN_LAYERS.pop(nn.Linear, None)
    _replace(FusedLinear, GatedLinear)


def _replace(old: type[GatedLinear], new: type[GatedLinear]) -> None:
    for name, update in UPDATES.items():
        if update is old:
            UPDATES[name] = new
