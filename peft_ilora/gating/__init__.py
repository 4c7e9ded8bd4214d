"""Gates: from what a gate reads to a modulation of a layer's rank coordinates.

A gate form is one file here, one row of `FORMS` and its name in `ILoRAConfig.gate`.
"""

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating.form import GateForm
from peft_ilora.gating.mixture import Gate, HardGate

FORMS: dict[str, type[GateForm]] = {"linear": Gate, "mlp": Gate, "hard": HardGate}
"""The form of each value of `ILoRAConfig.gate`."""


def make_gate(config: ILoRAConfig, width: int) -> GateForm:
    """Make the gate that a configuration names.

    Args:
        config: The adapter's configuration.
        width: Width of what the gate reads.
    """
    return FORMS[config.gate](config, width)
